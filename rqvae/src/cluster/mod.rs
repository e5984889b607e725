//! k-means: plain, balanced, level by level on residuals, inside clusters, and on parts of rotated vectors.

mod balanced;
mod centered;
mod dots;
mod hierarchical;
mod lloyd;
mod matmul;
mod opq;
mod points;
mod residual_kmeans;
#[cfg(feature = "simd-kmeans")]
mod simd_kmeans;

pub(crate) use balanced::balanced_lloyd;
pub(crate) use centered::Centered;
pub use hierarchical::{HierarchicalKmeans, HierarchicalKmeansConfig};
pub(crate) use lloyd::{BLOCK, lloyd, nearest_in_block, squared_distance, squared_norms};
pub use lloyd::{Kmeans, KmeansConfig};
pub(crate) use matmul::{Matrix, matmul};
pub use opq::{Opq, OpqConfig};
pub(crate) use points::{Points, agree, ask, at_once};
pub use residual_kmeans::{ResidualKmeans, ResidualKmeansConfig};
