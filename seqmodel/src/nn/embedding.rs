//! Sums of embedding rows: one lookup for all codes of an item.

use super::math::axpy;
use super::{values, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// An id that stands for no row and adds nothing (padding, a dropped or unseen item).
pub const NO_ROW: u32 = u32::MAX;

/// Rows of `table` (rows, dim) summed in groups: `ids` holds `group` ids per output -> (ids / group, dim).
///
/// # Errors
/// When an id lies outside the table.
pub fn embedding_sum(table: &Tensor, ids: Vec<u32>, group: usize) -> Result<Tensor> {
    let rows = table.dim(0)?;
    if let Some(id) = ids.iter().find(|id| **id != NO_ROW && **id as usize >= rows) {
        candle_core::bail!("embedding id {id} is outside a table of {rows} rows");
    }
    table.apply_op1(EmbeddingSum { ids: Arc::new(ids), group })
}

struct EmbeddingSum {
    ids: Arc<Vec<u32>>,
    group: usize,
}

impl CustomOp1 for EmbeddingSum {
    fn name(&self) -> &'static str {
        "embedding-sum"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dim = layout.dims()[1];
        let table = values(table, layout)?;
        let mut out = vec![0.0; self.ids.len() / self.group * dim];
        out.par_chunks_mut(dim).zip(self.ids.par_chunks(self.group)).with_min_len(64).for_each(|(out, ids)| {
            for id in ids.iter().filter(|id| **id != NO_ROW) {
                axpy(out, 1.0, &table[*id as usize * dim..][..dim]);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((self.ids.len() / self.group, dim))))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, dim) = table.dims2()?;
        let mut sums = vec![0.0; rows * dim];
        with_values(&grad.contiguous()?, |grad| {
            for (ids, grad) in self.ids.chunks(self.group).zip(grad.chunks_exact(dim)) {
                for id in ids.iter().filter(|id| **id != NO_ROW) {
                    axpy(&mut sums[*id as usize * dim..][..dim], 1.0, grad);
                }
            }
        })?;
        Ok(Some(Tensor::from_vec(sums, (rows, dim), table.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn sums_groups_and_passes_gradients() {
        let table = check::var("table", &[5, 3]);
        let ids = || vec![0, 4, NO_ROW, 2, 4, 4];
        let out = embedding_sum(&table, ids(), 2).unwrap().to_vec2::<f32>().unwrap();
        let rows = table.to_vec2::<f32>().unwrap();
        assert_eq!(out[0][1], rows[0][1] + rows[4][1]);
        assert_eq!(out[1], rows[2]);
        assert_eq!(out[2][2], rows[4][2] + rows[4][2]);
        check::gradients(&[&table], || embedding_sum(&table, ids(), 2).unwrap());
        assert!(embedding_sum(&table, vec![5], 1).is_err());
    }
}
