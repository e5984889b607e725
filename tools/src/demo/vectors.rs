//! Vectors for trials of size: heaps of items around centres, made row by row.
//!
//! Row i depends on the seed and i alone, so a file can be made, and checked, in any number of pieces. The heaps are of
//! unequal size (an item's heap is the square of a uniform number), and one number in three is the heap's own.

use crate::error::cannot_create;
use crate::progress::Stage;
use crate::table::VectorWriter;
use anyhow::Result;
use rayon::prelude::*;
use rqvae::{SeededRng, mix};
use std::path::Path;

const HEAPS: u64 = 4096;
/// Length of what is an item's own beside a centre of length 1 per dimension.
const SPREAD: f32 = 0.7;
const BLOCK_ROWS: usize = 1 << 16;

/// Writes `items` vectors of width `dim`, ids counting from 0, as Parquet.
///
/// # Errors
/// Cannot create, also where the file exists.
pub fn write(path: &Path, items: usize, dim: usize, seed: u64) -> Result<()> {
    if path.exists() {
        return Err(cannot_create(path, "the file exists"));
    }
    let mut stage = Stage::new("make vectors", items as u64);
    let mut writer = VectorWriter::create(path, dim)?;
    for start in (0..items).step_by(BLOCK_ROWS) {
        let end = items.min(start + BLOCK_ROWS);
        let mut data = vec![0.0; (end - start) * dim];
        data.par_chunks_mut(dim).enumerate().for_each(|(at, row)| fill(row, (start + at) as u64, seed));
        writer.push((start as i64..end as i64).collect(), data)?;
        stage.at(end as u64, items as u64, "");
    }
    writer.finish()?;
    stage.done(&format!("{items} x {dim}"));
    Ok(())
}

/// The vector of item `item`: (dim,).
pub fn fill(row: &mut [f32], item: u64, seed: u64) {
    let rng = SeededRng::new(seed);
    let (own, centres) = (rng.key("item", item), rng.key("heaps", 0));
    let uniform = unit(mix(own));
    let heap = ((f64::from(uniform) * f64::from(uniform) * HEAPS as f64) as u64).min(HEAPS - 1);
    let centre = mix(centres ^ mix(heap + 1));
    for (at, x) in row.iter_mut().enumerate() {
        let at = at as u64 + 1;
        *x = bell(centre, at) + SPREAD * bell(own, at);
    }
}

/// About normal, with variance 1: the sum of four uniform numbers.
fn bell(key: u64, at: u64) -> f32 {
    let bits = mix(key.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum: f32 = (0..4).map(|part| f32::from((bits >> (16 * part)) as u16)).sum();
    (sum / 65_535.0 - 2.0) * 3f32.sqrt()
}

fn unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{BatchContent, ItemStream, ReadOptions};

    #[test]
    fn vectors_are_spread_and_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.parquet");
        write(&path, 500, 8, 3).unwrap();
        assert!(write(&path, 1, 8, 3).is_err());
        let mut all = Vec::new();
        let stream = ItemStream::open(&path, &ReadOptions::default(), false).unwrap();
        stream
            .read(0, 100, None, false, &mut |batch| {
                if let BatchContent::Vectors(8, data) = batch.content {
                    all.extend(data);
                }
                Ok(())
            })
            .unwrap();
        let mut row = [0.0; 8];
        fill(&mut row, 431, 3);
        assert_eq!(all[431 * 8..][..8], row);
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        let variance = all.iter().map(|x| x * x).sum::<f32>() / all.len() as f32;
        assert!(mean.abs() < 0.2 && (1.0..2.0).contains(&variance), "{mean} {variance}");
    }
}
