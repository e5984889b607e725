//! What every model is compared with, by name: fitted in seconds on the histories that a question may know.

use crate::error::{Fault, fault};
use anyhow::Result;
use rqvae::{ItemIdx, Vectors};
use seqmodel::Retriever;
use seqmodel::baseline::{ContentKernel, ContentKnn, ItemKnn, Popular, Transitions};
use seqmodel::mf::{Als, AlsConfig, Bpr, BprConfig};

/// Names that [`fit`] takes.
pub const BASELINES: [&str; 7] = ["popular", "itemknn", "transitions", "content-knn", "content-kernel", "ials", "bpr"];

/// Followers that are kept of each item.
pub const FOLLOWERS: usize = 64;

/// The baseline called `name`, fitted on `known`; `content` has one row and `ties` one hash per item.
///
/// # Errors
/// There is no such baseline; the message lists those that exist.
pub fn fit(name: &str, known: &[&[ItemIdx]], content: &Vectors, ties: &[u64], seed: u64) -> Result<Box<dyn Retriever>> {
    Ok(match name {
        "popular" => Box::new(Popular::fit(known.iter().copied(), ties)),
        "itemknn" => Box::new(ItemKnn::fit(known, ties)),
        "transitions" => Box::new(Transitions::fit(known, ties, FOLLOWERS)),
        "content-knn" => Box::new(ContentKnn::new(content, ContentKnn::DECAY, ties)?),
        "content-kernel" => {
            let mut seen = vec![false; ties.len()];
            known.iter().copied().flatten().for_each(|item| seen[item.0 as usize] = true);
            Box::new(ContentKernel::new(content, &|item| seen[item.0 as usize], ties)?)
        }
        "ials" => Box::new(Als::fit(known, ties, &AlsConfig { seed, ..AlsConfig::default() })?),
        "bpr" => Box::new(Bpr::fit(known, ties, &BprConfig { seed, ..BprConfig::default() })?),
        other => {
            let names = BASELINES.join(", ");
            return Err(fault(Fault::Usage, format!("no baseline `{other}`; baselines: {names}")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use seqmodel::Query;

    #[test]
    fn every_name_is_fitted_and_answers_under_it() {
        let histories: Vec<Vec<ItemIdx>> =
            (0..12).map(|u| (0..4).map(|i| ItemIdx((u + 3 * i) % 10)).collect()).collect();
        let known: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
        let content = Vectors::new(3, (0..30).map(|i| (rqvae::mix(i) % 100) as f32).collect()).unwrap();
        let ties: Vec<u64> = (0..10).map(rqvae::mix).collect();
        for name in BASELINES {
            let retriever = fit(name, &known, &content, &ties, 1).unwrap();
            assert_eq!(retriever.name(), name);
            let query = Query { history: known[0], user: None, exclude: known[0] };
            let list = &retriever.retrieve(&[query], 5).unwrap()[0];
            assert_eq!(list.len(), 5, "{name}");
            assert!(list.iter().all(|s| !known[0].contains(&s.item)), "{name}");
        }
        assert!(fit("x", &known, &content, &ties, 1).err().unwrap().to_string().contains("ials"));
    }
}
