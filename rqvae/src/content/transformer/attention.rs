//! Every token of a text attends to every token of the same text.
//!
//! Texts stand one after another without any padding: queries, keys and values are rows of one matrix, (tokens, 3 *
//! heads * `head_dim`), and `starts` says where each text begins and the last one ends.

use super::math::{softmax, vectorized};

const LANES: usize = 16;
/// Queries that share the numbers of keys and values in registers.
const ROWS: usize = 4;

/// Heads of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) count: usize,
    pub(super) dim: usize,
}

impl Heads {
    /// Width of all heads together.
    pub(super) fn width(self) -> usize {
        self.count * self.dim
    }
}

/// What is added to the scores of a head, by the distance of key and query: (heads, 2 * `reach` + 1), the distance 0 in
/// the middle.
#[derive(Debug, Clone)]
pub(super) struct Bias {
    pub(super) table: Vec<f32>,
    pub(super) reach: usize,
}

/// Memory that is kept from call to call.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    /// (`head_dim`, keys), keys filled up to whole vectors.
    keys: Vec<f32>,
    /// (keys, `head_dim`), `head_dim` filled up to whole vectors.
    values: Vec<f32>,
    scores: Vec<f32>,
    mixed: Vec<f32>,
}

/// Mixes values by the softmax of queries times keys, which are to be scaled already: into `out` (tokens, width).
pub(super) fn attend(
    projected: &[f32],
    starts: &[usize],
    heads: Heads,
    bias: Option<&Bias>,
    scratch: &mut Scratch,
    out: &mut Vec<f32>,
) {
    let (width, dim) = (heads.width(), heads.dim);
    let stride = 3 * width;
    out.resize(projected.len() / 3, 0.0);
    for text in starts.windows(2) {
        let (start, tokens) = (text[0], text[1] - text[0]);
        let rows = &projected[start * stride..][..tokens * stride];
        let (padded, wide) = (tokens.next_multiple_of(LANES), dim.next_multiple_of(LANES));
        let Scratch { keys, values, scores, mixed } = scratch;
        keys.clear();
        keys.resize(dim * padded, 0.0);
        values.clear();
        values.resize(tokens * wide, 0.0);
        scores.resize(tokens * padded, 0.0);
        mixed.resize(tokens * wide, 0.0);
        for head in 0..heads.count {
            for (key, row) in rows.chunks_exact(stride).enumerate() {
                let (from, to) = (&row[width + head * dim..][..dim], &row[2 * width + head * dim..][..dim]);
                from.iter().enumerate().for_each(|(d, x)| keys[d * padded + key] = *x);
                values[key * wide..][..dim].copy_from_slice(to);
            }
            vectorized!({
                product(&rows[head * dim..], stride, dim, keys, padded, scores);
                for (query, row) in scores.chunks_exact_mut(padded).enumerate() {
                    let row = &mut row[..tokens];
                    if let Some(Bias { table, reach }) = bias {
                        let line = &table[head * (2 * reach + 1) + reach - query..];
                        row.iter_mut().zip(line).for_each(|(score, bias)| *score += bias);
                    }
                    softmax(row);
                }
                product(scores, padded, tokens, values, wide, mixed);
            });
            for (mixed, out) in mixed.chunks_exact(wide).zip(out[start * width..].chunks_exact_mut(width)) {
                out[head * dim..][..dim].copy_from_slice(&mixed[..dim]);
            }
        }
    }
}

/// Rows of `a`, `stride` apart and `inner` long, times `b` (inner, width), a whole number of vectors wide: (rows, width).
#[inline(always)]
fn product(a: &[f32], stride: usize, inner: usize, b: &[f32], width: usize, out: &mut [f32]) {
    let rows = out.len() / width;
    let mut row = 0;
    while row < rows {
        if rows - row >= ROWS {
            block::<ROWS>(&a[row * stride..], stride, inner, b, width, &mut out[row * width..]);
            row += ROWS;
        } else {
            block::<1>(&a[row * stride..], stride, inner, b, width, &mut out[row * width..]);
            row += 1;
        }
    }
}

#[inline(always)]
fn block<const R: usize>(a: &[f32], stride: usize, inner: usize, b: &[f32], width: usize, out: &mut [f32]) {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &a[r * stride..][..inner]);
    for start in (0..width).step_by(LANES) {
        let mut sums = [[0f32; LANES]; R];
        for at in 0..inner {
            let mut numbers = [0f32; LANES];
            numbers.copy_from_slice(&b[at * width + start..][..LANES]);
            for r in 0..R {
                let x = rows[r][at];
                for lane in 0..LANES {
                    sums[r][lane] += x * numbers[lane];
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            out[r * width + start..][..LANES].copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Softmax attention written out, in 64 bits.
    fn plain(rows: &[f32], tokens: usize, heads: Heads, bias: Option<&Bias>) -> Vec<f64> {
        let (width, dim) = (heads.width(), heads.dim);
        let at = |token: usize, part: usize, head: usize, d: usize| {
            f64::from(rows[token * 3 * width + part * width + head * dim + d])
        };
        let mut out = vec![0.0; tokens * width];
        for query in 0..tokens {
            for head in 0..heads.count {
                let score = |key: usize| {
                    let dot: f64 = (0..dim).map(|d| at(query, 0, head, d) * at(key, 1, head, d)).sum();
                    let place = |bias: &Bias| bias.table[head * (2 * bias.reach + 1) + bias.reach + key - query];
                    (dot + bias.map_or(0.0, |bias| f64::from(place(bias)))).exp()
                };
                let total: f64 = (0..tokens).map(score).sum();
                for d in 0..dim {
                    out[query * width + head * dim + d] =
                        (0..tokens).map(|key| score(key) / total * at(key, 2, head, d)).sum();
                }
            }
        }
        out
    }

    #[test]
    fn texts_side_by_side_equal_plain_loops_alone() {
        let heads = Heads { count: 3, dim: 5 };
        let lengths = [1usize, 17, 4, 33, 2];
        let total: usize = lengths.iter().sum();
        let number = |at: usize| f32::from((at as u32 + 1).wrapping_mul(2_654_435_761) as u16) / 32_768.0 - 1.0;
        let projected: Vec<f32> = (0..total * 3 * heads.width()).map(number).collect();
        let starts: Vec<usize> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |at, n| {
                *at += n;
                Some(*at)
            }))
            .collect();
        let reach = 40;
        let bias = Bias { table: (0..3 * (2 * reach + 1)).map(number).collect(), reach };
        for bias in [None, Some(&bias)] {
            let (mut out, mut scratch) = (Vec::new(), Scratch::default());
            attend(&projected, &starts, heads, bias, &mut scratch, &mut out);
            for text in starts.windows(2) {
                let stride = 3 * heads.width();
                let rows = &projected[text[0] * stride..text[1] * stride];
                let expected = plain(rows, text[1] - text[0], heads, bias);
                let found = &out[text[0] * heads.width()..text[1] * heads.width()];
                for (found, expected) in found.iter().zip(expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
                }
            }
        }
    }
}
