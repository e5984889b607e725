//! Points, and who looks for the codewords nearest to them: the processor, or a device that holds a copy.
//!
//! Shapes: points (items, dim), codewords (k, dim) -> codes (items,).

use super::lloyd::{BLOCK, nearest_priced, squared_norms};
use crate::{Accelerator, Code, DevicePoints, Error, Result};

/// How far a score of the device may be from the best one that the host finds, as a share of the numbers it is made of.
const APART: f32 = 1e-4;

/// How many points of width `dim` a device is given at once where there may be any number.
pub(crate) fn at_once(dim: usize) -> usize {
    ((1 << 26) / dim).max(1)
}

/// Points where they are searched.
pub(crate) struct Points<'a> {
    /// (items, dim).
    pub(crate) data: &'a [f32],
    pub(crate) dim: usize,
    device: Option<Box<dyn DevicePoints>>,
    /// Whether the device has shown that it multiplies, and that it chooses, as the host does.
    multiplies: bool,
    chooses: bool,
}

impl<'a> Points<'a> {
    /// Searched by the host.
    pub(crate) fn here(data: &'a [f32], dim: usize) -> Self {
        Self { data, dim, device: None, multiplies: false, chooses: false }
    }

    /// Searched on `device`, where there is one.
    ///
    /// # Errors
    /// The device fails, or has no room.
    pub(crate) fn on(device: Option<&dyn Accelerator>, data: &'a [f32], dim: usize) -> Result<Self> {
        let device = device.map(|device| device.points(data, dim)).transpose()?;
        Ok(Self { device, ..Self::here(data, dim) })
    }

    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        self.data.len() / self.dim
    }

    /// Nearest codeword of each point, the first one of equals.
    pub(crate) fn nearest(&mut self, codewords: &[f32]) -> Result<Vec<Code>> {
        self.nearest_priced(codewords, &squared_norms(codewords, self.dim))
    }

    /// As [`Points::nearest`] by squared distance plus price, `norms` (k,) being the squared norms plus the prices.
    ///
    /// # Errors
    /// The device fails, or does not choose as the host does.
    pub(crate) fn nearest_priced(&mut self, codewords: &[f32], norms: &[f32]) -> Result<Vec<Code>> {
        let Some(device) = &mut self.device else {
            return Ok(nearest_priced(self.data, self.dim, codewords, norms));
        };
        let mut codes = vec![0; self.data.len() / self.dim];
        ask(device.as_mut(), codewords, norms, &mut codes)?;
        if !self.chooses {
            agree(self.data, self.dim, codewords, norms, &codes)?;
            self.chooses = true;
        }
        Ok(codes)
    }

    /// Fills `out` (items, count) with the products of all points with the rows of `columns` (count, dim) where a device
    /// does that better than the host, which computes them block by block when it needs them; says whether it did.
    ///
    /// # Errors
    /// The device fails, or does not multiply as the host does.
    pub(crate) fn dots(&mut self, columns: &[f32], out: &mut [f32]) -> Result<bool> {
        let Some(device) = &mut self.device else { return Ok(false) };
        device.dots(columns, out)?;
        if !self.multiplies {
            agree_on_dots(self.data, self.dim, columns, out)?;
            self.multiplies = true;
        }
        Ok(true)
    }
}

/// As [`DevicePoints::nearest`], where no answer is beyond the codewords.
pub(crate) fn ask(device: &mut dyn DevicePoints, codewords: &[f32], norms: &[f32], codes: &mut [Code]) -> Result<()> {
    device.nearest(codewords, norms, codes)?;
    match codes.iter().find(|&&code| usize::from(code) >= norms.len()) {
        None => Ok(()),
        Some(code) => Err(Error::shape("code found by the device", format!("below {}", norms.len()), code)),
    }
}

/// Refuses a device whose choices for the first of `points` are worse than the host's beyond rounding.
pub(crate) fn agree(points: &[f32], dim: usize, codewords: &[f32], norms: &[f32], codes: &[Code]) -> Result<()> {
    let rows = (points.len() / dim).min(BLOCK);
    let block = &points[..rows * dim];
    let best = nearest_priced(block, dim, codewords, norms);
    let mut worse = 0;
    for ((x, &found), &best) in block.chunks_exact(dim).zip(codes).zip(&best) {
        let score = |code: Code| {
            let at = usize::from(code);
            let (dot, size) = product(x, codewords.get(at * dim..).unwrap_or_default());
            norms.get(at).map(|norm| (0.5 * norm - dot, 0.5 * norm.abs() + size))
        };
        let (found, best) = (score(found), score(best));
        let fine =
            found.zip(best).is_some_and(|((found, size), (best, other))| found - best <= APART * size.max(other));
        worse += usize::from(!fine);
    }
    if worse == 0 {
        return Ok(());
    }
    let what = format!("for {worse} of {rows} items compared the device finds another codeword than the processor");
    Err(Error::Disagreement { what })
}

/// Refuses a device whose products of the first of `points` with `columns` are not the host's but for rounding.
fn agree_on_dots(points: &[f32], dim: usize, columns: &[f32], found: &[f32]) -> Result<()> {
    let (rows, count) = ((points.len() / dim).min(BLOCK), columns.len() / dim);
    let wrong = points.chunks_exact(dim).take(rows).zip(found.chunks_exact(count.max(1))).filter(|(x, found)| {
        columns.chunks_exact(dim).zip(*found).any(|(column, found)| {
            let (dot, size) = product(x, column);
            // The other way round it would not see what is no number.
            let near = (dot - found).abs() <= APART * size;
            !near
        })
    });
    match wrong.count() {
        0 => Ok(()),
        wrong => {
            let what = format!("of {wrong} of {rows} items compared the device has other products than the processor");
            Err(Error::Disagreement { what })
        }
    }
}

/// The inner product, and the sum of the sizes of what is added up.
fn product(x: &[f32], y: &[f32]) -> (f32, f32) {
    x.iter().zip(y).fold((0.0, 0.0), |(dot, size), (x, y)| (dot + x * y, size + (x * y).abs()))
}
