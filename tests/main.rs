//! Integration tests.

mod content_parity;
