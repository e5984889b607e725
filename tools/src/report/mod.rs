//! What a demo run found, as data, as a page and as terminal tables.
//!
//! [`DemoReport`] is `report.json`: its keys are fixed. [`Extras`] is everything else that the page shows
//! (curves, code counts, tables with intervals, sample recommendations). Items are shown by title only.

mod charts;
mod html;
mod ordered;
#[cfg(test)]
mod sample;
mod sections;
mod tables;
mod terminal;

pub use html::render_html;
pub(crate) use html::{duration, escape, grouped, page};
pub use ordered::Ordered;
pub use terminal::{cold_start_table, metrics_table, samples_table};

use serde::{Deserialize, Serialize};

/// `report.json` of `sidrec demo`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// Items in the catalogue.
    pub items: usize,
    /// Users with a history.
    pub users: usize,
    /// Interactions of all users.
    pub interactions: usize,
    /// Health of the semantic IDs.
    pub tokenizer: TokenizerReport,
    /// Test metrics by model, seen items excluded, in the order of the table.
    pub models: Ordered<MetricSet>,
    /// Recall on products that no model has seen in training.
    pub cold_start: Vec<ColdStartRow>,
    /// Seconds by stage, in the order in which the stages ran.
    pub timing: Ordered<f64>,
}

/// The keys of `sids inspect --json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenizerReport {
    /// Items with an ID.
    pub items: usize,
    /// Levels without the suffix.
    pub levels: usize,
    /// Codes available, per level.
    pub codebook_sizes: Vec<u32>,
    /// Fraction of codes in use, per level.
    pub usage: Vec<f64>,
    /// Perplexity of the code distribution, per level.
    pub perplexity: Vec<f64>,
    /// Distinct IDs before the suffix.
    pub unique_prefixes: usize,
    /// `unique_prefixes` / `items`.
    pub unique_fraction: f64,
    /// Largest number of items that share all codes before the suffix.
    pub max_group: usize,
    /// Codes of the suffix level; 0 without one.
    pub suffix_size: u32,
    /// Mean squared error of the reconstructed content vectors.
    pub reconstruction_mse: f64,
    /// Squared error over squared distance to the mean vector.
    pub relative_error: f64,
    /// Quantizer, as on the command line.
    pub method: String,
    /// Content encoder.
    pub encoder: String,
    /// Seed of the fit.
    pub seed: u64,
    /// Seconds the fit took.
    pub fit_seconds: f64,
    /// Items per second through the fitted quantizer.
    pub encode_items_per_second: f64,
}

/// Item-level ranking metrics over the full catalogue, all in [0, 1].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricSet {
    /// Share of users whose target is among the first 5.
    #[serde(rename = "recall@5")]
    pub recall_5: f64,
    /// Discounted gain in the first 5.
    #[serde(rename = "ndcg@5")]
    pub ndcg_5: f64,
    /// Share of users whose target is among the first 10.
    #[serde(rename = "recall@10")]
    pub recall_10: f64,
    /// Discounted gain in the first 10.
    #[serde(rename = "ndcg@10")]
    pub ndcg_10: f64,
    /// Mean reciprocal rank, 0 beyond the first 10.
    #[serde(rename = "mrr@10")]
    pub mrr_10: f64,
}

/// One line of the cold-start table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ColdStartRow {
    /// Name of the method.
    pub method: String,
    /// Share of the list kept for unseen items, where the method has one.
    pub epsilon: Option<f64>,
    /// Length of the list.
    pub k: usize,
    /// Recall@k over users whose target is an unseen item.
    pub recall_unseen: f64,
    /// Ndcg@k over the same users.
    pub ndcg_unseen: f64,
    /// Recall@k over all users.
    pub recall_all: f64,
    /// Ndcg@k over all users.
    pub ndcg_all: f64,
    /// Recall@k over users whose target is a warm item.
    pub recall_warm: f64,
    /// Share of unseen items among all recommended.
    pub unseen_share: f64,
}

/// What the page shows beyond `report.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Extras {
    /// Readable name of the data, e.g. "demo catalogue".
    pub dataset: String,
    /// The command that made this report.
    pub command: String,
    /// Seeds of the run.
    pub seeds: Vec<u64>,
    /// Name of the generative model; its row is set off in tables and curves.
    pub highlight: String,
    /// One table per protocol: seen items excluded, then included.
    pub tables: Vec<MetricsTable>,
    /// Training curves, one per trained model.
    pub curves: Vec<Curve>,
    /// Items per code, `code_counts[level][code]`; the suffix may be left out.
    pub code_counts: Vec<Vec<u32>>,
    /// Products under a few prefixes, to show what codes mean.
    pub prefixes: Vec<PrefixExample>,
    /// Histories beside recommendations.
    pub samples: Vec<Sample>,
    /// Sentences on how things were measured.
    pub notes: Vec<String>,
}

/// Metrics of several models under one protocol.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsTable {
    /// Heading, e.g. "Seen items excluded".
    pub title: String,
    /// `exclude` or `include`.
    pub seen: String,
    /// Test users behind each number.
    pub users: usize,
    /// One row per model.
    pub rows: Vec<MetricsRow>,
}

/// One model's metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// Name of the model.
    pub model: String,
    /// The metrics.
    pub metrics: MetricSet,
    /// 95 % half-widths of the metrics, bootstrap over users.
    pub ci95: Option<MetricSet>,
    /// Share of the catalogue that shows up in some list of ten.
    pub coverage_10: Option<f64>,
    /// Users per second in evaluation.
    pub users_per_second: Option<f64>,
}

/// How one model learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Name of the model.
    pub model: String,
    /// Points in the order of training.
    pub points: Vec<CurvePoint>,
}

/// One logged step of training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Optimizer steps so far.
    pub step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Training loss in nats.
    pub loss: Option<f64>,
    /// Validation recall@10, where it was measured.
    pub val_recall_10: Option<f64>,
}

/// Items that share a prefix.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PrefixExample {
    /// The prefix, e.g. "12" or "12,7".
    pub prefix: String,
    /// Items under it.
    pub items: usize,
    /// A few of their titles.
    pub titles: Vec<String>,
}

/// One user, as shown on the page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The user's name in the data.
    pub user: String,
    /// Newest part of the history, oldest first.
    pub history: Vec<SampleItem>,
    /// Items of the history left out above.
    pub history_omitted: usize,
    /// The held-out item.
    pub target: SampleItem,
    /// Recommendations by model, best first.
    pub lists: Vec<SampleList>,
}

/// One model's recommendations for a user.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleList {
    /// Name of the model.
    pub model: String,
    /// Recommended items, best first.
    pub items: Vec<SampleItem>,
}

/// An item as people see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleItem {
    /// Title.
    pub title: String,
    /// Readable category path; may be empty.
    pub category: String,
    /// Semantic ID, e.g. "12,7,201,0"; may be empty.
    pub sid: String,
    /// Score or log-probability, for recommendations.
    pub score: Option<f64>,
    /// Whether this is the held-out target.
    pub is_target: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_json_has_the_promised_keys_and_survives_a_round_trip() {
        let (report, _) = sample::made_up();
        let json = serde_json::to_value(&report).unwrap();
        let keys = |v: &serde_json::Value| -> Vec<String> { v.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(keys(&json), ["items", "users", "interactions", "tokenizer", "models", "cold_start", "timing"]);
        let metrics = ["recall@5", "ndcg@5", "recall@10", "ndcg@10", "mrr@10"];
        assert_eq!(keys(&json["models"]["rqt"]), metrics);
        assert_eq!(keys(&json["models"])[0], "popular");
        assert_eq!(json["cold_start"][0]["method"], "content-knn");
        assert_eq!(json["tokenizer"]["suffix_size"], 4);
        let back: DemoReport = serde_json::from_value(json).unwrap();
        assert_eq!(back, report);
    }
}
