//! Scores every live item, no pruning: slow and obviously right.

use crate::{Hypothesis, LiveMask, Result, Trie};
use rqvae::{Code, ItemIdx, SidTable};

/// The best `top_k` live items of `table` under `log_probs(level, prefix)`, the log-probabilities of the next codes.
///
/// Equal scores go by the order of search: rank of the prefix first, then the smaller code. Items of one ID keep the
/// order of the trie's leaf.
pub fn exhaustive(
    table: &SidTable,
    trie: &Trie,
    live: &LiveMask,
    top_k: usize,
    mut log_probs: impl FnMut(usize, &[Code]) -> Vec<f32>,
) -> Result<Vec<Hypothesis>> {
    struct Path {
        codes: Vec<Code>,
        score: f32,
    }
    let levels = table.spec().len();
    let mut ids: Vec<Vec<Code>> = (0..table.items() as u32)
        .filter(|item| live.allows(ItemIdx(*item)))
        .map(|item| table.codes(ItemIdx(item)).to_vec())
        .collect();
    ids.sort();
    ids.dedup();
    let mut paths = vec![Path { codes: Vec::new(), score: 0.0 }];
    for level in 0..levels {
        let mut next = Vec::new();
        for (rank, path) in paths.iter().enumerate() {
            let scores = log_probs(level, &path.codes);
            let mut codes: Vec<Code> =
                ids.iter().filter(|id| id[..level] == path.codes[..]).map(|id| id[level]).collect();
            codes.dedup();
            for code in codes {
                let step = scores[usize::from(code)];
                let score = path.score + step;
                if step.is_finite() && score.is_finite() {
                    let codes = path.codes.iter().copied().chain([code]).collect();
                    next.push((rank, code, Path { codes, score }));
                }
            }
        }
        next.sort_by(|a, b| b.2.score.total_cmp(&a.2.score).then(a.0.cmp(&b.0)).then(a.1.cmp(&b.1)));
        paths = next.into_iter().map(|(_, _, path)| path).collect();
    }
    let mut list = Vec::new();
    for path in &paths {
        let sid = rqvae::SemanticId::new(&path.codes)?;
        let leaf = trie.find(&path.codes).map(|node| trie.items(node)).unwrap_or_default();
        let items = leaf.iter().filter(|item| live.allows(**item));
        list.extend(items.map(|item| Hypothesis { sid, item: *item, log_prob: path.score }));
    }
    list.truncate(top_k);
    Ok(list)
}
