//! The set of valid semantic IDs as a trie, and search over it.
//!
//! Rooms: [`Trie`] (which IDs exist, what changed since: [`TrieDelta`], and which of them a request may see:
//! [`LiveMask`]), [`StepScorer`] (the model as search sees it; [`Guided`] adds a second opinion on items, [`Sampled`] draws
//! instead of ranking, [`Traced`] writes down what was kept), [`search`] (the loop over levels), [`BeamKernel`] (what one device does with beams; [`CpuKernel`]
//! is the reference, [`SimdKernel`] the fast one) and [`oracle`] (no pruning: slow and obviously right).
//!
//! ```
//! use beam::{BeamConfig, LiveMask, PrefixScorer, SimdKernel, Trie, search};
//! use rqvae::{ItemIdx, SidSpec, SidTable};
//!
//! let spec = SidSpec { codebook_sizes: vec![2, 3], suffix_size: None };
//! let table = SidTable::new(spec, vec![0, 0, 0, 2, 1, 1])?;
//! let trie = Trie::build(&table)?;
//!
//! // Every code is equally likely, but the first code 1 is twice as likely as 0.
//! let mut scorer = PrefixScorer::new(trie.spec(), |_request, prefix, log_probs: &mut [f32]| {
//!     log_probs.fill((1.0 / log_probs.len() as f32).ln());
//!     if prefix.is_empty() {
//!         log_probs.copy_from_slice(&[(1f32 / 3.0).ln(), (2f32 / 3.0).ln()]);
//!     }
//! });
//! let live = LiveMask::all(&trie).without(&trie, &[ItemIdx(1)]);
//! let config = BeamConfig::uniform(10, trie.levels(), 10);
//! let found = search(&SimdKernel::new(&trie), &mut scorer, &config, 1, &[live])?;
//! let items: Vec<_> = found[0].iter().map(|h| (h.item, h.sid.to_string())).collect();
//! assert_eq!(items, [(ItemIdx(2), "1,1".to_string()), (ItemIdx(0), "0,0".to_string())]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cuda;
mod error;
mod guide;
mod kernel;
pub mod math;
pub mod oracle;
mod order;
mod sample;
mod scorer;
mod search;
mod trace;
mod trie;

pub use error::{BoxError, Error, Result};
pub use guide::Guided;
pub use kernel::{BeamKernel, CpuBeams, CpuKernel, Scores, SimdKernel};
pub use order::CandidateKey;
pub use sample::{Sampled, Sampling};
pub use scorer::{PrefixScorer, StepScorer};
pub use search::{BeamConfig, Hypothesis, ScoreMode, search};
pub use trace::{Kept, Trace, Traced};
pub use trie::{Codes, LiveMask, NodeId, Trie, TrieDelta};
