//! What is known when training stops at a number that is none.

use serde::Serialize;
use std::fmt::{Display, Formatter, Result};
use std::path::PathBuf;

/// Written to `diagnostics/` of the run directory, and told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The first tensor that is not finite.
    pub what: String,
    /// Step of the run, which was not taken.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
    /// Its learning rate.
    pub lr: f64,
    /// Gradient norm of the step before.
    pub grad_norm: f64,
    /// Rows of the batch in the training data.
    pub rows: Vec<u32>,
    /// The file with all of this.
    #[serde(skip)]
    pub written: Option<PathBuf>,
}

impl Display for Diagnosis {
    fn fmt(&self, f: &mut Formatter) -> Result {
        let Self { what, step, loss, lr, grad_norm, rows, written } = self;
        let some = &rows[..rows.len().min(8)];
        write!(f, "{what} is not finite at step {step} (loss {loss}, learning rate {lr:.2e}, gradient norm before ")?;
        write!(
            f,
            "{grad_norm:.2e}, rows {some:?} and so on); no weight was changed and the last checkpoint is intact"
        )?;
        match written {
            Some(path) => write!(f, "; more in {}", path.display()),
            None => Ok(()),
        }
    }
}
