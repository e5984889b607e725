//! Tests that span several crates. One binary, so that everything links once.

// Real and made-up BERT folders against reference vectors.
mod content_parity;
// TIGER against T5 in PyTorch.
mod tiger_parity;
// Who may depend on whom.
mod staircase;
