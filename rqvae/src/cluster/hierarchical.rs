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
use super::lloyd::{KmeansConfig, lloyd, squared_distance};
use super::points::{Points, at_once};
use crate::quantize::{Encoded, FILE, FORMAT, FitProgress, QuantizerConfig, SidEncoder, VERSION, content_order};
use crate::{Accelerator, Artefact, ArtefactWriter, Code, CodeMatrix, Error, Result, SeededRng, SidSpec, Vectors};
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
    /// Fits `content` (items, dim), large nodes on `device` where there is one. The order of the items makes no
    /// difference.
    ///
    /// # Errors
    /// The configuration is invalid, or there are no items, or a vector is not finite, or the device fails.
    pub fn fit(
        config: &QuantizerConfig,
        content: &Vectors,
        device: Option<&dyn Accelerator>,
        progress: &mut dyn FnMut(FitProgress),
    ) -> Result<Self> {
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
                    return Ok(Vec::new());
                }
                let branches = members.len().div_ceil(config.hkmeans.leaf_size).min(k);
                let device = device.filter(|device| device.pays(members.len() * branches * dim));
                split(&points, dim, members, branches, config, rng.key("hkmeans", first + at as u64), device)
            };
            let children: Result<Vec<Vec<Cluster>>> = nodes.par_iter().enumerate().map(split).collect();
            let mut below = Vec::new();
            for children in children? {
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

    /// Walks down from the root on `device` as long as so many points are at a node that this pays: their codes and where
    /// they have come to.
    fn descend(
        &self,
        points: &[f32],
        codes: &mut [Code],
        places: &mut [Place],
        device: &dyn Accelerator,
    ) -> Result<()> {
        let (dim, levels) = (self.centered.dim(), self.sizes.len());
        let mut open: Vec<(Place, Vec<u32>)> = vec![(Place::default(), (0..places.len() as u32).collect())];
        while let Some((Place { node, depth }, members)) = open.pop() {
            let (first, end) = (self.starts[node] as usize, self.starts[node + 1] as usize);
            if first == end || !device.pays(members.len() * (end - first) * dim) {
                continue;
            }
            let mut below = vec![Vec::new(); end - first];
            for members in members.chunks(at_once(dim)) {
                let rows: Vec<f32> =
                    members.iter().flat_map(|&i| &points[i as usize * dim..][..dim]).copied().collect();
                let found = Points::on(Some(device), &rows, dim)?.nearest(&self.centroids[first * dim..end * dim])?;
                for (&i, code) in members.iter().zip(found) {
                    codes[i as usize * levels + depth] = code;
                    places[i as usize] = Place { node: first + usize::from(code), depth: depth + 1 };
                    below[usize::from(code)].push(i);
                }
            }
            let place = |at: usize| Place { node: first + at, depth: depth + 1 };
            open.extend(below.into_iter().enumerate().map(|(at, members)| (place(at), members)));
        }
        Ok(())
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

/// Where a point has come to on its way down.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    node: usize,
    /// Codes chosen so far.
    depth: usize,
}

/// A centroid and the items that are nearest to it.
type Cluster = (Vec<f32>, Vec<u32>);

/// Clusters of `members` that have an item, none when they cannot be told apart.
fn split(
    points: &[f32],
    dim: usize,
    members: &[u32],
    branches: usize,
    config: &QuantizerConfig,
    seed: u64,
    device: Option<&dyn Accelerator>,
) -> Result<Vec<Cluster>> {
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
    let (centroids, _) = lloyd(&mut Points::on(device, &all[..limit * dim], dim)?, &kmeans)?;
    let mut children: Vec<Cluster> =
        centroids.chunks_exact(dim).map(|centroid| (centroid.to_vec(), Vec::new())).collect();
    for (&member, code) in members.iter().zip(Points::on(device, &all, dim)?.nearest(&centroids)?) {
        children[usize::from(code)].1.push(member);
    }
    children.retain(|(_, members)| !members.is_empty());
    Ok(if children.len() < 2 { Vec::new() } else { children })
}

impl SidEncoder for HierarchicalKmeans {
    fn codebook_sizes(&self) -> &[u32] {
        &self.sizes
    }

    fn encode_on(&self, content: &Vectors, device: Option<&dyn Accelerator>) -> Result<Encoded> {
        let mut points = self.centered.all(content)?;
        let levels = self.sizes.len();
        let mut flat: Vec<Code> = vec![0; content.rows() * levels];
        let mut places = vec![Place::default(); content.rows()];
        if let Some(device) = device {
            self.descend(&points, &mut flat, &mut places, device)?;
        }
        let each = flat.par_chunks_exact_mut(levels).zip(points.par_chunks_exact_mut(content.dim)).zip(places);
        each.for_each(|((codes, point), Place { mut node, depth })| {
            for code in &mut codes[depth..] {
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
        let codes = CodeMatrix::new(levels, flat)?;
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
        let tree = HierarchicalKmeans::fit(&config, &content, None, &mut |_| ()).unwrap();
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
