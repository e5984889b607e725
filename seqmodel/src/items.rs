//! What a model may know about the items: their codes and their content vectors, never their names or order.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use rqvae::{ItemIdx, SidSpec, SidTable, Vectors};
use std::sync::Arc;

/// Codes and content of a catalogue, as the models read them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ItemFeatures {
    sids: Arc<SidTable>,
    content: Option<Arc<Vectors>>,
}

impl ItemFeatures {
    /// Codes of all items and, where a model asks for it, one content vector per item.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the two differ in length.
    pub fn new(sids: Arc<SidTable>, content: Option<Arc<Vectors>>) -> Result<Self> {
        if let Some(content) = &content
            && content.rows() != sids.items()
        {
            return Err(Error::Mismatch {
                what: "content vectors".into(),
                expected: format!("{} rows, one per item", sids.items()),
                found: format!("{} rows", content.rows()),
            });
        }
        Ok(Self { sids, content })
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.sids.items()
    }

    /// Whether the catalogue is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The SID table.
    pub fn sids(&self) -> &Arc<SidTable> {
        &self.sids
    }

    /// Shape of the IDs.
    pub fn spec(&self) -> &SidSpec {
        self.sids.spec()
    }

    /// Width of the content vectors, 0 without.
    pub fn content_dim(&self) -> usize {
        self.content.as_ref().map_or(0, |c| c.dim)
    }

    /// The content vectors, where there are some.
    pub fn vectors(&self) -> Option<&Vectors> {
        self.content.as_deref()
    }

    /// Codes of `item`, one per level, suffix included.
    pub fn codes(&self, item: ItemIdx) -> &[rqvae::Code] {
        self.sids.codes(item)
    }

    /// Content of `items`, zeros for `None`, every vector scaled to a root mean square of 1 so that models learn at the
    /// same pace from any encoder: -> (items, `content_dim`).
    pub fn content(&self, items: &[Option<ItemIdx>]) -> Result<Tensor> {
        let dim = self.content_dim();
        let mut data = vec![0.0; items.len() * dim];
        if let Some(content) = &self.content {
            data.par_chunks_mut(dim.max(1)).zip(items).with_min_len(64).for_each(|(row, item)| {
                if let Some(item) = item {
                    let vector = content.row(item.0 as usize);
                    let square = vector.iter().map(|x| x * x).sum::<f32>() / dim as f32;
                    let scale = if square > 0.0 { square.sqrt().recip() } else { 0.0 };
                    row.iter_mut().zip(vector).for_each(|(out, x)| *out = x * scale);
                }
            });
        }
        Ok(Tensor::from_vec(data, (items.len(), dim), &Device::Cpu)?)
    }
}
