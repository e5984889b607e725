//! What quantiser and encoder are fitted on: the items with the smallest hashes of their ids.
//!
//! Which items these are depends neither on the order of the table nor on how often it was read.

use crate::progress::Stage;
use crate::table::{BatchContent, ItemStream, tie_hash};
use anyhow::Result;
use std::collections::BTreeMap;

/// Items to fit on, in the order of their hashes.
pub(super) enum Sample {
    Vectors { dim: usize, data: Vec<f32> },
    Texts(Vec<String>),
}

enum Kept {
    Vector(Vec<f32>),
    Text(String),
}

/// Draws at most `limit` items; `stopped` says whether to give up.
pub(super) fn draw(
    stream: &ItemStream,
    limit: usize,
    per_batch: u64,
    stage: &mut Stage,
    stopped: &dyn Fn() -> Result<()>,
) -> Result<Sample> {
    let mut kept: BTreeMap<u64, Kept> = BTreeMap::new();
    let (mut rows, total) = (0, stream.rows()?.unwrap_or(0));
    let mut width = 0;
    stream.read(0, per_batch, None, false, &mut |batch| {
        stopped()?;
        for (at, key) in batch.keys.iter().enumerate() {
            let hash = tie_hash(key);
            let full = kept.len() >= limit;
            if full && kept.last_key_value().is_some_and(|(last, _)| *last <= hash) || kept.contains_key(&hash) {
                continue;
            }
            kept.insert(
                hash,
                match &batch.content {
                    BatchContent::Vectors(dim, data) => {
                        width = *dim;
                        Kept::Vector(data[at * dim..][..*dim].to_vec())
                    }
                    BatchContent::Texts(texts) => Kept::Text(texts[at].clone()),
                },
            );
            if full {
                kept.pop_last();
            }
        }
        rows += batch.rows;
        stage.at(rows, total, "");
        Ok(())
    })?;
    Ok(if stream.has_vectors() {
        let mut data = Vec::with_capacity(kept.len() * width);
        kept.into_values().for_each(|kept| {
            if let Kept::Vector(vector) = kept {
                data.extend(vector);
            }
        });
        Sample::Vectors { dim: width, data }
    } else {
        let texts = kept.into_values().filter_map(|kept| match kept {
            Kept::Text(text) => Some(text),
            Kept::Vector(_) => None,
        });
        Sample::Texts(texts.collect())
    })
}
