//! Warm and new items in one list.
//!
//! `with_slots` keeps places for new items whoever asks (Rajput et al. 2023, sec. 4.3); `placed` gives a new item a place
//! where it promises more than the warm item there, by a bias that is calibrated to a share of all places.
//! `reciprocal_ranks` makes one list of several whose scores have no scale in common (Cormack et al. 2009).

use crate::retrieve::Scored;
use rqvae::ItemIdx;
use std::collections::BTreeMap;

/// Weighted lists, best first each, as one by the sums of weight / (offset + place), places from 1; ties by item hash.
pub fn reciprocal_ranks(lists: &[(&[Scored], f32)], offset: f32, tie_hash: &[u64]) -> Vec<Scored> {
    let mut points: BTreeMap<ItemIdx, f32> = BTreeMap::new();
    for (list, weight) in lists {
        for (place, scored) in list.iter().enumerate() {
            *points.entry(scored.item).or_default() += weight / (offset + (place + 1) as f32);
        }
    }
    let mut all: Vec<Scored> = points.into_iter().map(|(item, score)| Scored { item, score }).collect();
    let hash = |scored: &Scored| tie_hash[scored.item.0 as usize];
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then(hash(a).cmp(&hash(b))));
    all
}

/// The share of all places that `new` of `all` items get where at most `most` is asked for: no more than three times what
/// falls to as many items on average, so that a handful of them does not stand in every list.
pub fn fair_share(most: f64, new: usize, all: usize) -> f64 {
    most.min(3.0 * new as f64 / all.max(1) as f64)
}

/// Places that a share of a list of `k` comes to, rounded up.
fn places(share: f64, k: usize) -> usize {
    // A share such as 0.3 of 10 is a little more than 3 in floating point.
    ((share * k as f64 - 1e-9).ceil().max(0.0) as usize).min(k)
}

/// Most places of one list for new items where they have `share` of all places: three times as many, at least one.
pub fn most_places(share: f64, k: usize) -> usize {
    if share > 0.0 { places(3.0 * share, k).max(1) } else { 0 }
}

/// Lists of warm items with `ceil(epsilon * k)` places at the end for new ones; shorter where there are none.
pub fn with_slots(warm: &[Scored], new: &[Scored], epsilon: f64, k: usize) -> Vec<Scored> {
    let slots = places(epsilon, k).min(new.len());
    warm.iter().take(k - slots).chain(new.iter().take(slots)).copied().collect()
}

/// How much the n-th new item lacks to the warm item whose place it would take, n from 1 to `most`; never falls with n.
fn margins<'a>(warm: &'a [Scored], new: &'a [Scored], k: usize, most: usize) -> impl Iterator<Item = f32> + 'a {
    let place = move |(at, new): (usize, &Scored)| match warm.get(k - 1 - at) {
        Some(warm) => warm.score - new.score,
        // An empty place costs nothing.
        None => f32::NEG_INFINITY,
    };
    new.iter().take(most.min(k)).enumerate().map(place)
}

/// The list of `k` in which a new item stands where its score plus `bias` is above that of the warm item it takes the
/// place of, at most `most` of them, at the end.
pub fn placed(warm: &[Scored], new: &[Scored], bias: f32, k: usize, most: usize) -> Vec<Scored> {
    let count = margins(warm, new, k, most).take_while(|margin| *margin < bias).count();
    warm.iter().take(k - count).chain(new.iter().take(count)).copied().collect()
}

/// The bias at which [`placed`] gives `share` of all places of `lists` (warm, new) to new items, or as many as it may.
pub fn bias_for(lists: &[(&[Scored], &[Scored])], share: f64, k: usize, most: usize) -> f32 {
    let mut all: Vec<f32> = lists.iter().flat_map(|(warm, new)| margins(warm, new, k, most)).collect();
    all.sort_by(f32::total_cmp);
    let places = (share * (k * lists.len()) as f64).round() as usize;
    match (places, all.get(places)) {
        (0, _) => f32::NEG_INFINITY,
        (_, Some(next)) => *next,
        (_, None) => f32::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rqvae::{ItemIdx, mix};

    fn list(items: &[u32]) -> Vec<Scored> {
        items.iter().enumerate().map(|(at, item)| Scored { item: ItemIdx(*item), score: -(at as f32) }).collect()
    }

    fn ids(list: &[Scored]) -> Vec<u32> {
        list.iter().map(|scored| scored.item.0).collect()
    }

    #[test]
    fn slots_are_the_last_places_rounded_up() {
        let (warm, new) = (list(&[0, 1, 2, 3, 4]), list(&[9, 8]));
        assert_eq!(ids(&with_slots(&warm, &new, 0.1, 5)), [0, 1, 2, 3, 9]);
        assert_eq!(ids(&with_slots(&warm, &new, 0.3, 5)), [0, 1, 2, 9, 8]);
        assert_eq!(ids(&with_slots(&warm, &new, 0.0, 5)), [0, 1, 2, 3, 4]);
        assert_eq!(ids(&with_slots(&warm, &[], 0.3, 5)), [0, 1, 2, 3, 4]);
        let (warm, new) = (list(&(0..20).collect::<Vec<_>>()), list(&(50..70).collect::<Vec<_>>()));
        assert_eq!(with_slots(&warm, &new, 0.3, 10).iter().filter(|s| s.item.0 >= 50).count(), 3);
    }

    #[test]
    fn what_several_lists_rank_high_comes_first() {
        let (a, b) = (list(&[1, 2, 3]), list(&[3, 2, 7]));
        let merged = |weight| ids(&reciprocal_ranks(&[(&a, 1.0), (&b, weight)], 60.0, &[8, 7, 6, 5, 4, 3, 2, 1]));
        assert_eq!(merged(1.0)[..2], [3, 2]);
        // A list without weight only adds items, and equal sums go by hash.
        assert_eq!(merged(0.0), [1, 2, 3, 7]);
        assert_eq!(ids(&reciprocal_ranks(&[(&list(&[0]), 1.0), (&list(&[5]), 1.0)], 1.0, &[9, 0, 0, 0, 0, 2])), [5, 0]);
    }

    #[test]
    fn few_new_items_get_few_places() {
        assert_eq!(
            [(10, 1000), (100, 1000), (0, 1000), (0, 0)].map(|(n, all)| fair_share(0.1, n, all)),
            [0.03, 0.1, 0.0, 0.0]
        );
    }

    #[test]
    fn a_list_has_at_most_three_times_the_average() {
        assert_eq!(
            [(0.1, 10), (0.01, 10), (0.5, 10), (0.1, 50), (0.0, 10)].map(|(s, k)| most_places(s, k)),
            [3, 1, 10, 15, 0]
        );
    }

    #[test]
    fn a_new_item_takes_a_place_that_it_deserves() {
        let (warm, new) = (list(&[0, 1, 2]), list(&[9, 8]));
        // The last warm item has -2, the first new one 0 with the bias added.
        assert_eq!(ids(&placed(&warm, &new, -1.0, 3, 3)), [0, 1, 9]);
        assert_eq!(ids(&placed(&warm, &new, -2.0, 3, 3)), [0, 1, 2]);
        assert_eq!(ids(&placed(&warm, &new, f32::INFINITY, 3, 1)), [0, 1, 9]);
        assert_eq!(ids(&placed(&warm[..1], &new, f32::NEG_INFINITY, 3, 3)), [0]);
    }

    proptest! {
        /// Whatever the scores, the bias gives the share that is asked for, no list has two of a kind or too many, and a
        /// larger share never takes a new item away.
        #[test]
        fn shares_are_met(seed: u64, users in 1usize..30, k in 1usize..12, share in 0.0f64..0.4) {
            let draw = |n: u64| (mix(seed ^ n) % 10_000) as f32 / 1000.0;
            let ranked = |user: usize, base: u32, salt: u64| {
                let mut list: Vec<Scored> = (0..30u32)
                    .map(|i| Scored { item: ItemIdx(base + i), score: draw(salt + user as u64 * 100 + u64::from(i)) })
                    .collect();
                list.sort_by(|a, b| b.score.total_cmp(&a.score));
                list
            };
            let lists: Vec<_> = (0..users).map(|u| (ranked(u, 0, 0), ranked(u, 100, 1 << 40))).collect();
            let views: Vec<(&[Scored], &[Scored])> = lists.iter().map(|(w, n)| (&w[..], &n[..])).collect();
            let count = |share: f64| -> Vec<usize> {
                let bias = bias_for(&views, share, k, k);
                let list = |(w, n): &(&[Scored], &[Scored])| placed(w, n, bias, k, k);
                views.iter().map(|view| list(view).iter().filter(|s| s.item.0 >= 100).count()).collect()
            };
            let (some, more) = (count(share), count(share + 0.2));
            // Equal margins share one bias, so a few places may be missing.
            let want = (share * (k * users) as f64).round() as usize;
            prop_assert!(some.iter().sum::<usize>() <= want && some.iter().sum::<usize>() + 3 >= want, "{:?} {want}", some);
            prop_assert!(some.iter().zip(&more).all(|(a, b)| a <= b));
        }
    }
}
