//! Both twins on the same logits: what tests and the self-test of a GPU compare.

use super::device::Device;
use super::index::DeviceIndex;
use super::kernels::Numbers;
use super::search::{DeviceBeams, DeviceKernel, DeviceScores};
use crate::math::{TILE, log_softmax, tile};
use crate::{BeamConfig, BoxError, CpuKernel, Hypothesis, LiveMask, PrefixScorer, Result, StepScorer, search};
use rqvae::Code;
use std::sync::Arc;

/// Logits from a closure of request and prefix, put where a model would leave them. Waits for the device at every level.
struct Uploads<'a, F> {
    device: &'a Arc<dyn Device>,
    codes: Vec<usize>,
    logits: F,
}

impl<F: FnMut(usize, &[Code], &mut [f32])> StepScorer<DeviceKernel> for Uploads<'_, F> {
    fn score(&mut self, level: usize, beams: &DeviceBeams) -> std::result::Result<DeviceScores, BoxError> {
        if level == 0 {
            beams.poison()?;
        }
        let codes = self.codes[level];
        let scores = beams.scores(codes);
        let (pitch, rows) = (scores.pitch as usize, beams.batch() * beams.beams());
        // What nobody may read is no number.
        let mut logits = vec![f32::NAN; rows * pitch];
        let mut partials = vec![f32::NAN; rows * scores.tiles as usize * 2];
        for (request, paths) in beams.paths()?.iter().enumerate() {
            for (rank, path) in paths.iter().enumerate() {
                let row = request * beams.beams() + rank;
                let line = &mut logits[row * pitch..][..codes];
                (self.logits)(request, path, line);
                for (at, x) in line.chunks(TILE).enumerate() {
                    let at = (row * scores.tiles as usize + at) * 2;
                    (partials[at], partials[at + 1]) = tile(x);
                }
            }
        }
        self.device.write(scores.logits, bytemuck::cast_slice(&logits))?;
        self.device.write(scores.partials, bytemuck::cast_slice(&partials))?;
        Ok(scores)
    }
}

/// The lists of the device, and those of the reference: equal bit for bit where all is well. `logits` fills the logits
/// after a prefix of a request, which are finite or minus infinity.
///
/// # Errors
/// The arguments do not fit, or the device fails.
pub fn both(
    device: &Arc<dyn Device>,
    index: &Arc<DeviceIndex>,
    config: &BeamConfig,
    live: &[LiveMask],
    mut logits: impl FnMut(usize, &[Code], &mut [f32]),
) -> Result<[Vec<Vec<Hypothesis>>; 2]> {
    let trie = index.trie();
    let codes = (0..trie.levels()).map(|level| trie.spec().codes_at(level) as usize).collect();
    let kernel = DeviceKernel::new(device, index, Numbers::Bf16, config)?;
    let mut uploads = Uploads { device, codes, logits: &mut logits };
    let found = search(&kernel, &mut uploads, config, live.len(), live)?;
    let mut scorer = PrefixScorer::new(trie.spec(), |request: usize, prefix: &[Code], log_probs: &mut [f32]| {
        logits(request, prefix, log_probs);
        log_softmax(log_probs);
    });
    let expected = search(&CpuKernel::new(&trie), &mut scorer, config, live.len(), live)?;
    Ok([found, expected])
}
