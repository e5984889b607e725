//! Unseen items by what was generated.

use beam::{Hypothesis, Trie};
use rqvae::ItemIdx;
use seqmodel::Scored;
use std::collections::BTreeSet;

/// Unseen items that share their first `codes` codes with a generated ID, in the order in which the IDs were generated;
/// under one prefix by `tie_hash` (TIGER's rule, section 4.3, with 3 codes of 4).
pub(super) fn matched(
    generated: &[Hypothesis],
    codes: usize,
    trie: &Trie,
    unseen: &dyn Fn(ItemIdx) -> bool,
    tie_hash: &[u64],
    most: usize,
) -> Vec<Scored> {
    let (mut found, mut prefixes) = (Vec::new(), BTreeSet::new());
    for hypothesis in generated {
        let prefix = hypothesis.sid.prefix(codes);
        if !prefixes.insert(prefix) {
            continue;
        }
        let Some(node) = trie.find(prefix.codes()) else { continue };
        let mut items: Vec<ItemIdx> =
            trie.items_below(codes, node).iter().copied().filter(|item| unseen(*item)).collect();
        items.sort_by_key(|item| tie_hash[item.0 as usize]);
        found.extend(items.into_iter().map(|item| Scored { item, score: hypothesis.log_prob }));
        if found.len() >= most {
            break;
        }
    }
    found.truncate(most);
    found
}

/// The drafts of another scorer in the order of the generative model's own scores, which `exact` has of unseen items (Ding
/// et al. 2024, SpecGR, sec. 3.2: draft, verify); drafts that are not among its best are refused.
pub(super) fn verified(drafts: &[Scored], exact: &[Scored]) -> Vec<Scored> {
    /// Drafts that are looked at.
    const DRAFTS: usize = 10;
    let drafted = |scored: &&Scored| drafts.iter().take(DRAFTS).any(|draft| draft.item == scored.item);
    exact.iter().filter(drafted).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rqvae::{SemanticId, SidSpec, SidTable};

    fn list(items: &[u32]) -> Vec<Scored> {
        items.iter().map(|item| Scored { item: ItemIdx(*item), score: 0.0 }).collect()
    }

    fn ids(list: &[Scored]) -> Vec<u32> {
        list.iter().map(|scored| scored.item.0).collect()
    }

    #[test]
    fn unseen_items_join_under_the_prefix_of_a_generated_id() {
        let spec = SidSpec { codebook_sizes: vec![4, 4], suffix_size: Some(4) };
        let codes = vec![0, 1, 0, 0, 1, 1, 0, 2, 0, 3, 3, 0];
        let trie = Trie::build(&SidTable::new(spec, codes).unwrap()).unwrap();
        let generated = [Hypothesis { sid: SemanticId::new(&[0, 1, 0]).unwrap(), item: ItemIdx(0), log_prob: -1.0 }];
        let unseen = |item: ItemIdx| item.0 != 0;
        let found = |codes| ids(&matched(&generated, codes, &trie, &unseen, &[5, 4, 3, 2], 9));
        assert_eq!(found(3), [0u32; 0]);
        assert_eq!(found(2), [1]);
        assert_eq!(found(1), [2, 1]);
    }

    #[test]
    fn drafts_are_ranked_by_who_verifies_them() {
        assert_eq!(ids(&verified(&list(&[1, 2, 3, 4]), &list(&[3, 9, 1]))), [3, 1]);
        let many: Vec<u32> = (0..30).collect();
        assert_eq!(ids(&verified(&list(&many), &list(&[20, 9]))), [9]);
    }
}
