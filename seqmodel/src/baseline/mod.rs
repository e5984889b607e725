//! What every model is compared with: popularity, neighbours by co-occurrence, neighbours by content.

mod content_knn;
mod item_knn;
mod popular;

pub use content_knn::ContentKnn;
pub use item_knn::ItemKnn;
pub use popular::Popular;
