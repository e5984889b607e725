//! Points on a device, searched for their nearest codewords: see [`rqvae::DevicePoints`].
//!
//! Products are taken in f32, as on the host, piece by piece of the points, so that scores take bounded room whatever the
//! number of codewords.

use super::accelerator::below;
use super::device::{Device, Launch, Memory, Program};
use super::kernels::Numbers;
use super::train::{CodewordArgs, MatmulArgs, NearestArgs, matmul, nearest_code, subtract_codeword, unit_rows};
use crate::{Error, Result};
use rqvae::{Code, DevicePoints};
use std::sync::Arc;

/// Most scores that are held at once; a piece has one block of points at least.
const SCORES: usize = 1 << 26;
const BLOCK: usize = 64;

/// Points (rows, dim), and what a search leaves.
pub(super) struct HeldPoints {
    device: Arc<dyn Device>,
    rows: usize,
    dim: usize,
    points: Memory,
    /// Of the last search, and room for it.
    codewords: Memory,
    norms: Memory,
    /// A u32 for each point.
    codes: Memory,
    scores: Memory,
    searched: bool,
}

impl HeldPoints {
    pub(super) fn new(device: &Arc<dyn Device>, points: &[f32], dim: usize) -> Result<Self> {
        let rows = points.len() / dim.max(1);
        if dim == 0 || rows * dim != points.len() || u32::try_from(rows.max(dim)).is_err() {
            return Err(Error::shape("points of a device", format!("rows of {dim}, fewer than 2^32"), points.len()));
        }
        let empty = || Memory::new(device, 0);
        Ok(Self {
            points: Memory::with(device, points)?,
            codewords: empty()?,
            norms: empty()?,
            codes: Memory::new(device, 4 * rows)?,
            scores: empty()?,
            device: Arc::clone(device),
            rows,
            dim,
            searched: false,
        })
    }

    /// Brings `rows` of codewords over and gives back how many there are.
    fn bring(&mut self, rows: &[f32]) -> Result<usize> {
        let count = rows.len() / self.dim;
        if count == 0 || count * self.dim != rows.len() || u32::try_from(count).is_err() {
            return Err(Error::shape("codewords", format!("rows of {}", self.dim), rows.len()));
        }
        put(&mut self.codewords, &self.device, rows)?;
        let piece = (SCORES / count).max(BLOCK).min(self.rows);
        grow(&mut self.scores, &self.device, 4 * piece * count)?;
        Ok(count)
    }

    /// First row and number of rows of every piece, with the product that scores it against `count` codewords.
    fn pieces(&self, count: usize) -> impl Iterator<Item = (usize, usize, Launch)> + use<'_> {
        let piece = (SCORES / count).max(BLOCK);
        (0..self.rows).step_by(piece).map(move |first| {
            let (rows, dim) = (piece.min(self.rows - first), self.dim as u32);
            let points = self.points.address() + 4 * (first * self.dim) as u64;
            let product = MatmulArgs { a: points, a_row: dim, a_col: 1, m: rows as u32, ..MatmulArgs::default() };
            let by = MatmulArgs { b: self.codewords.address(), b_row: dim, b_col: 1, n: count as u32, ..product };
            let into = MatmulArgs { c: self.scores.address(), ldc: count as u32, k: dim, ..by };
            (first, rows, matmul(Numbers::F32, into, 1))
        })
    }

    /// Runs nothing where there are no points: a device refuses a grid of no blocks.
    fn run(&self, launches: Vec<Launch>) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        self.device.run(&Program { numbers: Numbers::F32, launches })
    }

    fn row_args(&self) -> CodewordArgs {
        let (codewords, codes) = (self.codewords.address(), self.codes.address());
        CodewordArgs { x: self.points.address(), codewords, codes, rows: self.rows as u32, dim: self.dim as u32 }
    }

    fn all_dots(&mut self, columns: &[f32], out: &mut [f32]) -> Result<()> {
        self.searched = false;
        let count = self.bring(columns)?;
        fits("room for products", self.rows * count, out.len())?;
        for (first, rows, product) in self.pieces(count) {
            self.run(vec![product])?;
            let out = &mut out[first * count..][..rows * count];
            self.device.read(self.scores.address(), bytemuck::cast_slice_mut(out))?;
        }
        Ok(())
    }

    fn search(&mut self, codewords: &[f32], norms: &[f32], codes: &mut [Code]) -> Result<()> {
        fits("room for codes", self.rows, codes.len())?;
        let count = self.bring(codewords)?;
        fits("norms of codewords", count, norms.len())?;
        put(&mut self.norms, &self.device, norms)?;
        let mut launches = Vec::new();
        for (first, rows, product) in self.pieces(count) {
            launches.push(product);
            launches.push(nearest_code(&NearestArgs {
                scores: self.scores.address(),
                norms: self.norms.address(),
                codes: self.codes.address() + 4 * first as u64,
                rows: rows as u32,
                count: count as u32,
            }));
        }
        self.run(launches)?;
        let mut found = vec![0u32; self.rows];
        self.device.read(self.codes.address(), bytemuck::cast_slice_mut(&mut found))?;
        for (code, found) in codes.iter_mut().zip(found) {
            let known = Some(found).filter(|&found| (found as usize) < count).and_then(|found| found.try_into().ok());
            *code = known.ok_or_else(|| Error::shape("code found by the device", format!("below {count}"), found))?;
        }
        self.searched = true;
        Ok(())
    }
}

impl DevicePoints for HeldPoints {
    fn dots(&mut self, columns: &[f32], out: &mut [f32]) -> rqvae::Result<()> {
        self.all_dots(columns, out).map_err(below)
    }

    fn nearest(&mut self, codewords: &[f32], norms: &[f32], codes: &mut [Code]) -> rqvae::Result<()> {
        self.search(codewords, norms, codes).map_err(below)
    }

    fn subtract(&mut self) -> rqvae::Result<()> {
        if !self.searched {
            return Err(below(Error::shape("codewords to subtract", "a search before", "none")));
        }
        self.run(vec![subtract_codeword(&self.row_args())]).map_err(below)
    }

    fn unit(&mut self) -> rqvae::Result<()> {
        self.run(vec![unit_rows(&self.row_args())]).map_err(below)
    }

    fn read(&mut self, points: &mut [f32]) -> rqvae::Result<()> {
        fits("room for points", self.rows * self.dim, points.len()).map_err(below)?;
        self.device.read(self.points.address(), bytemuck::cast_slice_mut(points)).map_err(below)
    }
}

/// Writes `numbers` where there is room for them, which is made where there is none.
fn put(memory: &mut Memory, device: &Arc<dyn Device>, numbers: &[f32]) -> Result<()> {
    grow(memory, device, size_of_val(numbers))?;
    device.write(memory.address(), bytemuck::cast_slice(numbers))
}

fn grow(memory: &mut Memory, device: &Arc<dyn Device>, bytes: usize) -> Result<()> {
    if memory.bytes() < bytes {
        *memory = Memory::new(device, bytes)?;
    }
    Ok(())
}

fn fits(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::shape(what, expected, found)) }
}
