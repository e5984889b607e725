//! Learning rate as a function of the step alone, so that a resumed run follows the same curve.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Stays at the peak.
    Constant,
    /// Falls with the inverse square root of the step (T5, TIGER).
    InverseSqrt,
    /// Half a cosine from the peak to a hundredth of it at the last step.
    Cosine,
}

/// Linear warm-up followed by a decay.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Learning rate at the end of warm-up.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Last step; only the cosine looks at it.
    pub total_steps: u64,
    /// Shape after warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// Learning rate of `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        let (done, warmup) = ((step + 1) as f64, self.warmup_steps.max(1) as f64);
        if done < warmup {
            return self.peak * done / warmup;
        }
        match self.decay {
            Decay::Constant => self.peak,
            Decay::InverseSqrt => self.peak * (warmup / done).sqrt(),
            Decay::Cosine => {
                let span = (self.total_steps as f64 - warmup).max(1.0);
                let part = ((done - warmup) / span).min(1.0);
                self.peak * (0.01 + 0.99 * 0.5 * (1.0 + (std::f64::consts::PI * part).cos()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_then_decays() {
        let schedule = |decay| Schedule { peak: 1.0, warmup_steps: 10, total_steps: 110, decay };
        for decay in [Decay::Constant, Decay::InverseSqrt, Decay::Cosine] {
            assert!((schedule(decay).at(0) - 0.1).abs() < 1e-12);
            assert!((schedule(decay).at(9) - 1.0).abs() < 1e-12);
        }
        assert!((schedule(Decay::Constant).at(1000) - 1.0).abs() < 1e-12);
        assert!((schedule(Decay::InverseSqrt).at(39) - 0.5).abs() < 1e-12);
        assert!((schedule(Decay::Cosine).at(109) - 0.01).abs() < 1e-12);
    }
}
