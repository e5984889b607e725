//! Terminal tables (being written).
use super::{ColdStartRow, MetricsTable, Sample};
/// Metrics of one protocol as a table; `highlight` is the model set off.
pub fn metrics_table(_table: &MetricsTable, _highlight: &str) -> String {
    String::new()
}
/// Cold-start rows as a table.
pub fn cold_start_table(_rows: &[ColdStartRow]) -> String {
    String::new()
}
/// Histories beside recommendations, one table per user.
pub fn samples_table(_samples: &[Sample], _width: u16) -> String {
    String::new()
}
