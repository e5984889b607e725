//! Hierarchical k-means: clusters inside clusters; an ID is the path from the root.
//!
//! A node with more than `leaf_size` items is split into as many clusters as it takes to get there, at most
//! `codebook_size`; below a leaf all codes are 0, and the suffix numbers its items.
//!
//! Shapes: content (items, dim) -> codes (items, levels).
//! Paper: Tay et al. 2022 (DSI), sec. 3.3, semantically structured identifiers.
//! Deviations: the number of branches follows the size of the node; the last code of DSI, the place in the leaf, is
//! the suffix of this catalogue.

use super::centered::Centered;
use super::lloyd::{KmeansConfig, lloyd, nearest, squared_distance};
use crate::quantize::{Encoded, FILE, FORMAT, FitProgress, QuantizerConfig, SidEncoder, VERSION, content_order};
use crate::{Artefact, ArtefactWriter, Code, CodeMatrix, Error, Result, SeededRng, SidSpec, Vectors};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

const METHOD: &str = "hkmeans";

/// Numbers of hierarchical k-means beside those that all quantisers share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HierarchicalKmeansConfig {
    /// Nodes with at most this many items are not split further; the c of DSI.
    pub leaf_size: usize,
    /// Most iterations per node.
    pub iterations: usize,
    /// Centroids of a node are fitted on at most this many items per branch; 0 for all.
    pub items_per_code: usize,
}

impl Default for HierarchicalKmeansConfig {
    fn default() -> Self {
        Self { leaf_size: 8, iterations: 30, items_per_code: 256 }
    }
}

/// A fitted tree; nodes are numbered level by level, the children of a node follow one another.
#[derive(Debug, Clone)]
pub struct HierarchicalKmeans {
    sizes: Vec<u32>,
    centered: Centered,
    /// First child of every node and, one further, of the next: (nodes + 1,). The root is node 0.
    starts: Vec<u32>,
    /// Centroid of every node: (nodes, dim); that of the root is 0.
    centroids: Vec<f32>,
}

impl HierarchicalKmeans {
    /// Fits `content` (items, dim). The order of the items makes no difference.
    ///
    /// # Errors
    /// The configuration is invalid, or there are no items, or a vector is not finite.
    pub fn fit(config: &QuantizerConfig, content: &Vectors, progress: &mut dyn FnMut(FitProgress)) -> Result<Self> {
        config.validate()?;
        let order = content_order(content)?;
        let (dim, levels, k) = (content.dim, config.levels, config.codebook_size as usize);
        let centered = Centered::fit(content, &order);
        let points = centered.points(content, &order);
        let rng = SeededRng::new(config.seed);
        let mut centroids = vec![0.0; dim];
        let mut starts = vec![1u32];
        let mut nodes: Vec<Vec<u32>> = vec![(0..order.len() as u32).collect()];
        for level in 0..=levels {
            let first = starts.len() as u64;
            let split = |(at, members): (usize, &Vec<u32>)| {
                if level == levels || members.len() <= config.hkmeans.leaf_size {
                    return Vec::new();
                }
                let branches = members.len().div_ceil(config.hkmeans.leaf_size).min(k);
                split(&points, dim, members, branches, config, rng.key("hkmeans", first + at as u64))
            };
            let children: Vec<Vec<(Vec<f32>, Vec<u32>)>> = nodes.par_iter().enumerate().map(split).collect();
            let mut below = Vec::new();
            for children in children {
                let end = starts.last().copied().unwrap_or(1) + children.len() as u32;
                starts.push(end);
                for (centroid, members) in children {
                    centroids.extend(centroid);
                    below.push(members);
                }
            }
            nodes = below;
            progress(FitProgress { stage: METHOD, done: level.min(levels), total: levels, loss: None });
        }
        Ok(Self { sizes: vec![config.codebook_size; levels], centered, starts, centroids })
    }

    /// Number of nodes, root and leaves included.
    pub fn nodes(&self) -> usize {
        self.starts.len() - 1
    }

    fn centroid(&self, node: usize) -> &[f32] {
        &self.centroids[node * self.centered.dim()..][..self.centered.dim()]
    }

    pub(crate) fn load(artefact: &Artefact) -> Result<Self> {
        let corrupt = |reason: &str| Error::corrupt(artefact.path(), reason);
        let centered = Centered::load(artefact)?;
        let (_, sizes) = artefact.u32s("sizes")?;
        let spec = SidSpec { codebook_sizes: sizes, suffix_size: None };
        spec.validate().map_err(|e| corrupt(&e.to_string()))?;
        let (_, starts) = artefact.u32s("starts")?;
        let (_, centroids) = artefact.f32s("centroids")?;
        let nodes = starts.len().saturating_sub(1);
        // Children come behind their parent, so that every walk ends.
        let ordered = starts.windows(2).enumerate().all(|(node, w)| w[0] as usize > node && w[0] <= w[1]);
        if nodes == 0 || !ordered || starts.last().is_none_or(|&end| end as usize != nodes) || starts[0] != 1 {
            return Err(corrupt("`starts` is not that of a tree"));
        }
        if centroids.len() != nodes * centered.dim() || centroids.iter().any(|x| !x.is_finite()) {
            return Err(corrupt("`centroids` is not one finite vector per node"));
        }
        let most = starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        if spec.codebook_sizes.iter().any(|&size| most > size) {
            return Err(corrupt("a node has more children than there are codes"));
        }
        Ok(Self { sizes: spec.codebook_sizes, centered, starts, centroids })
    }
}

/// Clusters of `members` that have an item, none when they cannot be told apart.
fn split(
    points: &[f32],
    dim: usize,
    members: &[u32],
    branches: usize,
    config: &QuantizerConfig,
    seed: u64,
) -> Vec<(Vec<f32>, Vec<u32>)> {
    let rows = |members: &[u32]| -> Vec<f32> {
        members.iter().flat_map(|&i| &points[i as usize * dim..][..dim]).copied().collect()
    };
    let all = rows(members);
    // Rows come in the order of a hash, so the first ones are a random draw.
    let limit = match config.hkmeans.items_per_code {
        0 => members.len(),
        per_code => per_code.saturating_mul(branches).min(members.len()),
    };
    let kmeans = KmeansConfig { k: branches, iterations: config.hkmeans.iterations, tolerance: 1e-4, seed };
    let (centroids, _) = lloyd(&all[..limit * dim], dim, &kmeans);
    let mut children: Vec<(Vec<f32>, Vec<u32>)> =
        centroids.chunks_exact(dim).map(|centroid| (centroid.to_vec(), Vec::new())).collect();
    for (&member, code) in members.iter().zip(nearest(&all, dim, &centroids)) {
        children[usize::from(code)].1.push(member);
    }
    children.retain(|(_, members)| !members.is_empty());
    if children.len() < 2 { Vec::new() } else { children }
}

impl SidEncoder for HierarchicalKmeans {
    fn codebook_sizes(&self) -> &[u32] {
        &self.sizes
    }

    fn encode(&self, content: &Vectors) -> Result<Encoded> {
        let mut points = self.centered.all(content)?;
        let levels = self.sizes.len();
        let mut flat: Vec<Code> = vec![0; content.rows() * levels];
        flat.par_chunks_exact_mut(levels).zip(points.par_chunks_exact_mut(content.dim)).for_each(|(codes, point)| {
            let mut node = 0;
            for code in codes {
                let children = self.starts[node] as usize..self.starts[node + 1] as usize;
                let mut best = f32::INFINITY;
                let first = children.start;
                for child in children {
                    let distance = squared_distance(point, self.centroid(child));
                    if distance < best {
                        (best, node, *code) = (distance, child, (child - first) as Code);
                    }
                }
            }
            point.copy_from_slice(self.centroid(node));
        });
        let codes = CodeMatrix::new(levels, flat).expect("one code per level was made for each item");
        Ok(Encoded::new(codes, self.centered.restore(points), content))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut writer = ArtefactWriter::new(FORMAT, VERSION);
        writer.metadata("method", METHOD);
        self.centered.save(&mut writer)?;
        writer.u32s("sizes", &[self.sizes.len()], &self.sizes)?;
        writer.u32s("starts", &[self.starts.len()], &self.starts)?;
        writer.f32s("centroids", &[self.nodes(), self.centered.dim()], &self.centroids)?;
        writer.write(&dir.join(FILE))
    }

    fn method(&self) -> &'static str {
        METHOD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_the_heaps() {
        // Two far heaps of two near heaps of four points each.
        let at = |i: usize| (i / 8 * 100 + i / 4 % 2 * 10) as f32 + (i % 4) as f32 * 0.1;
        let content = Vectors::new(1, (0..16).map(at).collect()).unwrap();
        let hkmeans = HierarchicalKmeansConfig { leaf_size: 4, ..HierarchicalKmeansConfig::default() };
        let config = QuantizerConfig { levels: 3, codebook_size: 2, hkmeans, ..QuantizerConfig::default() };
        let tree = HierarchicalKmeans::fit(&config, &content, &mut |_| ()).unwrap();
        assert_eq!(tree.nodes(), 1 + 2 + 4);
        let codes = tree.encode(&content).unwrap().codes;
        for i in 0..16 {
            assert_eq!(codes.row(i)[2], 0, "leaves end with zeros");
            for j in 0..16 {
                assert_eq!(codes.row(i)[0] == codes.row(j)[0], i / 8 == j / 8);
                assert_eq!(codes.row(i) == codes.row(j), i / 4 == j / 4);
            }
        }
    }
}
