//! k-means, plain and level by level on residuals.

mod lloyd;
mod matmul;
mod residual_kmeans;

pub(crate) use lloyd::{BLOCK, lloyd, nearest_in_block, squared_distance, squared_norms};
pub use lloyd::{Kmeans, KmeansConfig};
pub(crate) use matmul::{Matrix, matmul};
pub use residual_kmeans::{ResidualKmeans, ResidualKmeansConfig};
