//! T5's relative position bias: one learned number per head and bucket of distances.
//!
//! Paper: Raffel et al. 2020, T5, sec. 2.1; buckets as in the reference implementation.

use super::embedding_sum;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;

/// The bias table of a stack of blocks, which share it.
#[derive(Debug, Clone)]
pub struct RelativeBias {
    table: Tensor,
    buckets: usize,
    max_distance: usize,
    bidirectional: bool,
}

impl RelativeBias {
    /// `buckets` x `heads` numbers; distances from `max_distance` on share the last bucket.
    pub fn new(buckets: usize, max_distance: usize, heads: usize, both: bool, vb: &VarBuilder) -> Result<Self> {
        let table = vb.get_with_hints((buckets, heads), "weight", Init::Randn { mean: 0.0, stdev: 0.02 })?;
        Ok(Self { table, buckets, max_distance, bidirectional: both })
    }

    /// Bias of `queries` positions that end a sequence of `keys` positions -> (heads, queries, keys).
    pub fn forward(&self, queries: usize, keys: usize) -> Result<Tensor> {
        let heads = self.table.dim(1)?;
        embedding_sum(&self.table, self.buckets(queries, keys), 1)?.t()?.contiguous()?.reshape((heads, queries, keys))
    }

    /// Row of the table for each pair of query and key, of `queries` positions that end a sequence of `keys`.
    pub(crate) fn buckets(&self, queries: usize, keys: usize) -> Vec<u32> {
        // Distances from -(keys - 1) to queries - 1, each once.
        let known: Vec<u32> = (1 - keys as i64..queries as i64).map(|distance| self.bucket(distance)).collect();
        let query = |query: usize| {
            let first = queries - 1 - query;
            known[first..first + keys].iter().copied()
        };
        (0..queries).flat_map(query).collect()
    }

    /// Bias of every distance from `-left` to `right`: -> (heads, left + right + 1).
    pub(crate) fn by_distance(&self, left: usize, right: usize) -> Result<Vec<f32>> {
        let heads = self.table.dim(1)?;
        let distances = -(left as i64)..=right as i64;
        super::with_values(&self.table.contiguous()?, |table| {
            let row = |head: usize| distances.clone().map(move |d| (head, d));
            (0..heads).flat_map(row).map(|(head, d)| table[self.bucket(d) as usize * heads + head]).collect()
        })
    }

    /// Bucket of `distance` = key position - query position.
    fn bucket(&self, distance: i64) -> u32 {
        let (mut first, mut buckets, mut distance) = (0, self.buckets, distance);
        if self.bidirectional {
            buckets /= 2;
            if distance > 0 {
                first = buckets;
            }
            distance = distance.abs();
        } else {
            distance = (-distance).max(0);
        }
        let (exact, distance) = (buckets / 2, usize::try_from(distance).unwrap_or(usize::MAX));
        if distance < exact {
            return (first + distance) as u32;
        }
        let log = (distance as f64 / exact as f64).ln() / (self.max_distance as f64 / exact as f64).ln();
        (first + (exact + (log * (buckets - exact) as f64) as usize).min(buckets - 1)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::Parameters;
    use super::*;

    fn bias(both: bool) -> RelativeBias {
        RelativeBias::new(32, 128, 2, both, &Parameters::new(1).builder()).unwrap()
    }

    #[test]
    fn buckets_are_those_of_t5() {
        // Values of transformers' T5Attention._relative_position_bucket for the same arguments.
        let both = bias(true);
        let got: Vec<u32> = [0, -1, -7, -8, -20, -127, 1, 8, 50].iter().map(|d| both.bucket(*d)).collect();
        assert_eq!(got, [0, 1, 7, 8, 10, 15, 17, 24, 29]);
        let causal = bias(false);
        let got: Vec<u32> = [0, 3, -1, -15, -16, -30, -200].iter().map(|d| causal.bucket(*d)).collect();
        assert_eq!(got, [0, 0, 1, 15, 16, 20, 31]);
    }

    #[test]
    fn the_last_queries_see_the_same_bias_as_in_a_full_pass() {
        let bias = bias(false);
        let full = bias.forward(6, 6).unwrap().narrow(1, 5, 1).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(full, bias.forward(1, 6).unwrap().to_vec3::<f32>().unwrap());
    }
}
