//! What every model is compared with: popularity, neighbours by co-occurrence, followers, neighbours by content.

mod content_kernel;
mod content_knn;
mod item_knn;
mod popular;
mod transitions;

pub use content_kernel::ContentKernel;
pub use content_knn::ContentKnn;
pub use item_knn::ItemKnn;
pub use popular::Popular;
pub use transitions::Transitions;
