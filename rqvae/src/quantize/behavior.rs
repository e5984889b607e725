//! What users' histories say about items, for quantisers that listen: which items occur together, and where that puts
//! them among all others.
//!
//! Only histories that a model may train on belong here: codes that know test interactions leak them.
//!
//! Shapes: collaborative vectors (items, dim).
//! Papers: He et al. 2025 (PLUM), sec. 3.1, for pairs; Wang et al. 2024 (LETTER), sec. 3.2, for vectors.
//! Deviations: where no vectors are given, they are the leading eigenvectors of the co-occurrence counts, normalised by
//! the items' degrees (Ng et al. 2002), instead of SASRec's embeddings: no second model has to be trained.

use super::Vectors;
use crate::content::{Sparse, right_singular_vectors};
use crate::{Error, ItemIdx, Result, SeededRng};
use rand::Rng;
use rayon::prelude::*;
use std::collections::BTreeMap;

const OVERSAMPLE: usize = 16;
const ITERATIONS: usize = 6;

/// Co-occurrence of items, and vectors if there are some.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Behavior {
    /// Neighbours of item i: `neighbours[starts[i]..starts[i + 1]]`, ascending, with how often they occur together.
    starts: Vec<usize>,
    neighbours: Vec<(u32, f32)>,
    vectors: Option<Vectors>,
}

impl Behavior {
    /// Counts how often two of `items` items lie at most `window` places apart in a history.
    pub fn of_histories<'a>(items: usize, histories: impl IntoIterator<Item = &'a [ItemIdx]>, window: usize) -> Self {
        let mut rows: Vec<BTreeMap<u32, f32>> = vec![BTreeMap::new(); items];
        for history in histories {
            for (at, a) in history.iter().enumerate() {
                for b in history[at + 1..].iter().take(window).filter(|b| *b != a) {
                    for (a, b) in [(a, b), (b, a)] {
                        if let Some(row) = rows.get_mut(a.0 as usize).filter(|_| (b.0 as usize) < items) {
                            *row.entry(b.0).or_default() += 1.0;
                        }
                    }
                }
            }
        }
        Self::from_rows(rows)
    }

    fn from_rows(rows: Vec<BTreeMap<u32, f32>>) -> Self {
        let mut behavior = Self { starts: vec![0], ..Self::default() };
        for row in rows {
            behavior.neighbours.extend(row);
            behavior.starts.push(behavior.neighbours.len());
        }
        behavior
    }

    /// With collaborative vectors (items, dim), zeros for items that have none.
    #[must_use]
    pub fn with_vectors(self, vectors: Vectors) -> Self {
        Self { vectors: Some(vectors), ..self }
    }

    /// Items with at least one neighbour.
    pub fn connected(&self) -> usize {
        self.starts.windows(2).filter(|w| w[0] < w[1]).count()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.neighbours.is_empty() && self.vectors.is_none()
    }

    /// Of the items in `rows` alone, in that order.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        let mut place = vec![u32::MAX; self.starts.len().saturating_sub(1)];
        for (at, &row) in rows.iter().enumerate() {
            if let Some(place) = place.get_mut(row as usize) {
                *place = at as u32;
            }
        }
        let kept = |row: u32| -> BTreeMap<u32, f32> {
            let found = self.neighbours_of(row as usize).iter();
            let moved = found.map(|&(other, count)| (place[other as usize], count));
            moved.filter(|(other, _)| *other != u32::MAX).collect()
        };
        let vectors = self.vectors.as_ref().map(|vectors| Vectors {
            dim: vectors.dim,
            data: rows.iter().flat_map(|&row| vectors.row(row as usize).iter().copied()).collect(),
        });
        Self { vectors, ..Self::from_rows(rows.iter().map(|&row| kept(row)).collect()) }
    }

    /// Checks that it is about `items` items.
    pub(crate) fn check(&self, items: usize) -> Result<()> {
        let counted = self.starts.len().saturating_sub(1);
        if !self.neighbours.is_empty() && counted != items {
            return Err(Error::shape("co-occurrence", format!("{items} items"), counted));
        }
        if let Some(vectors) = &self.vectors {
            vectors.check()?;
            if vectors.rows() != items {
                return Err(Error::shape("collaborative vectors", format!("{items} items"), vectors.rows()));
            }
        }
        Ok(())
    }

    fn neighbours_of(&self, item: usize) -> &[(u32, f32)] {
        if item + 1 < self.starts.len() { &self.neighbours[self.starts[item]..self.starts[item + 1]] } else { &[] }
    }

    /// Whether something occurs together with `item`.
    pub(crate) fn has_neighbours(&self, item: usize) -> bool {
        !self.neighbours_of(item).is_empty()
    }

    /// A neighbour of `item`, drawn in proportion to the counts.
    pub(crate) fn draw(&self, item: usize, rng: &mut impl Rng) -> Option<u32> {
        let neighbours = self.neighbours_of(item);
        let all: f32 = neighbours.iter().map(|(_, count)| count).sum();
        let mut mark = rng.random::<f32>() * all;
        let found = neighbours.iter().find(|(_, count)| {
            mark -= count;
            mark < 0.0
        });
        found.or(neighbours.last()).map(|(other, _)| *other)
    }

    /// Collaborative vectors of `dim` numbers: those given, or eigenvectors of the normalised counts.
    ///
    /// # Errors
    /// The vectors given have another width.
    pub(crate) fn collaborative(&self, dim: usize, seed: u64) -> Result<Vectors> {
        if let Some(vectors) = &self.vectors {
            if vectors.dim != dim {
                let expected = format!("the width of a latent, {dim}");
                return Err(Error::shape("collaborative vectors", expected, vectors.dim));
            }
            return Ok(vectors.clone());
        }
        let items = self.starts.len().saturating_sub(1);
        let degree: Vec<f32> = (0..items)
            .map(|item| self.neighbours_of(item).iter().map(|(_, count)| count).sum::<f32>().max(1.0).sqrt())
            .collect();
        let rows = (0..items).into_par_iter().map(|item| {
            let weight = |&(other, count): &(u32, f32)| (other, count / (degree[item] * degree[other as usize]));
            // Half of an item's weight stays with itself, which makes the matrix positive: its singular vectors are
            // its eigenvectors, the leading ones those of the largest communities.
            let mut row: Vec<(u32, f32)> = self.neighbours_of(item).iter().map(weight).collect();
            if !row.is_empty() {
                row.push((item as u32, 1.0));
                row.sort_unstable_by_key(|(other, _)| *other);
            }
            row
        });
        let matrix = Sparse::new(items, rows.collect());
        let rng = SeededRng::new(SeededRng::new(seed).key("collaborative", 0));
        let (vectors, values) = right_singular_vectors(&matrix, dim, OVERSAMPLE, ITERATIONS, rng);
        let mut data = vectors;
        for row in data.chunks_exact_mut(dim) {
            row.iter_mut().zip(&values).for_each(|(x, value)| *x *= value);
            super::unit(row);
        }
        Ok(Vectors { dim, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histories(of: &[&[u32]]) -> Vec<Vec<ItemIdx>> {
        of.iter().map(|items| items.iter().map(|&i| ItemIdx(i)).collect()).collect()
    }

    fn counted(items: usize, of: &[&[u32]], window: usize) -> Behavior {
        Behavior::of_histories(items, histories(of).iter().map(Vec::as_slice), window)
    }

    #[test]
    fn counts_on_paper() {
        let behavior = counted(5, &[&[0, 1, 2], &[1, 0], &[3, 3], &[9, 0]], 1);
        assert_eq!(behavior.neighbours_of(0), [(1, 2.0)]);
        assert_eq!(behavior.neighbours_of(1), [(0, 2.0), (2, 1.0)]);
        assert_eq!(behavior.connected(), 3);
        assert!(!behavior.has_neighbours(3) && !behavior.has_neighbours(77));
        assert_eq!(counted(3, &[&[0, 1, 2]], 2).neighbours_of(0), [(1, 1.0), (2, 1.0)]);
        assert!(Behavior::default().is_empty());
        assert!(behavior.check(5).is_ok() && behavior.check(6).is_err());
        let part = behavior.select(&[2, 0, 1]);
        assert_eq!(part.neighbours_of(2), [(0, 1.0), (1, 2.0)]);
        assert_eq!(behavior.select(&[2, 0]).connected(), 0);
    }

    #[test]
    fn neighbours_are_drawn_by_their_counts() {
        let behavior = counted(3, &[&[0, 1], &[0, 1], &[0, 1], &[0, 2]], 1);
        let mut rng = SeededRng::new(1).stream("draw");
        let ones = (0..4000).filter(|_| behavior.draw(0, &mut rng) == Some(1)).count();
        assert!((2850..3150).contains(&ones), "{ones}");
        assert_eq!(counted(2, &[], 1).draw(0, &mut rng), None);
    }

    #[test]
    fn vectors_of_a_community_are_alike() {
        // Two cliques, and an item that nobody knows.
        let behavior = counted(7, &[&[0, 1, 2], &[2, 0, 1], &[3, 4, 5], &[5, 3, 4]], 2);
        let vectors = behavior.collaborative(2, 3).unwrap();
        let cosine = |a: usize, b: usize| vectors.row(a).iter().zip(vectors.row(b)).map(|(x, y)| x * y).sum::<f32>();
        assert!(cosine(0, 1) > 0.99 && cosine(3, 5) > 0.99 && cosine(0, 4).abs() < 0.1, "{vectors:?}");
        assert_eq!(vectors.row(6), [0.0, 0.0]);
        let given = behavior.with_vectors(Vectors::new(2, vec![1.0; 14]).unwrap());
        assert_eq!(given.collaborative(2, 0).unwrap().data, [1.0; 14]);
        assert!(matches!(given.collaborative(3, 0), Err(Error::ShapeMismatch { .. })));
    }
}
