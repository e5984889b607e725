//! What interactions say about items, for quantisers that listen.
//!
//! Codes must not know what they are tested on: of a user with three interactions or more, the last two, which
//! validation and test ask for, are left out, as they are in training.

use crate::error::bad_data;
use crate::table::{Interactions, ItemKeys, read_vectors};
use anyhow::Result;
use rqvae::Behavior;
use seqmodel::LeaveOneOut;
use std::path::Path;

/// Items at most so many places apart in a history occur together.
pub const WINDOW: usize = 3;

/// Co-occurrence in the training part of `interactions`, and collaborative vectors of the file `vectors`, if any, which
/// are to be `latent_dim` wide.
///
/// # Errors
/// Bad data when the file cannot be used or its vectors are of another width.
pub fn behavior(
    keys: &ItemKeys,
    interactions: Option<&Interactions>,
    window: usize,
    vectors: Option<&Path>,
    latent_dim: usize,
) -> Result<Behavior> {
    let mut behavior = Behavior::default();
    if let Some(interactions) = interactions {
        let split = LeaveOneOut::new(&interactions.histories);
        let histories = (0..split.users()).map(|user| split.train(user));
        behavior = Behavior::of_histories(keys.len(), histories, window);
    }
    if let Some(path) = vectors {
        let vectors = read_vectors(path, keys)?;
        if vectors.dim != latent_dim {
            let (path, found) = (path.display(), vectors.dim);
            return Err(bad_data(format!(
                "{path}: expected vectors of width rqvae.latent_dim = {latent_dim}, found {found}"
            )));
        }
        behavior = behavior.with_vectors(vectors);
    }
    Ok(behavior)
}
