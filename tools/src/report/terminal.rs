//! The report's tables for a terminal, as plain text without colors.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use super::{ColdStartRow, MetricsTable, Sample, SampleItem, SampleList};

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).force_no_tty();
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Metrics of one protocol; `highlight` names the model that gets a mark.
pub fn metrics_table(metrics: &MetricsTable, highlight: &str) -> String {
    let top = metrics.rows.iter().map(|r| r.metrics.recall_10).fold(1e-12, f64::max);
    let mut out = table(&["model", "recall@10", "", "recall@5", "ndcg@5", "ndcg@10", "mrr@10", "coverage@10"]);
    if let Some(bar) = out.column_mut(2) {
        bar.set_cell_alignment(CellAlignment::Left);
    }
    for row in &metrics.rows {
        let mark = if row.model == highlight { "▸ " } else { "  " };
        let m = &row.metrics;
        let recall = match row.ci95 {
            Some(ci) => format!("{:.4} ± {:.4}", m.recall_10, ci.recall_10),
            None => format!("{:.4}", m.recall_10),
        };
        let mut cells = vec![format!("{mark}{}", row.model), recall, bar(m.recall_10 / top)];
        cells.extend([m.recall_5, m.ndcg_5, m.ndcg_10, m.mrr_10].map(|v| format!("{v:.4}")));
        cells.push(row.coverage_10.map_or(String::new(), |c| format!("{c:.3}")));
        out.add_row(cells);
    }
    format!("{}, {} users\n{out}", metrics.title, metrics.users)
}

/// A share as up to twelve blocks, in eighths.
fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let filled = (1..=96).take_while(|&n| f64::from(n) <= share * 96.0 + 1e-9).count();
    format!("{}{}", "█".repeat(filled / 8), EIGHTHS[filled % 8])
}

/// Cold-start rows.
pub fn cold_start_table(rows: &[ColdStartRow]) -> String {
    let mut out = table(&["method", "k", "recall, new", "ndcg, new", "recall, all", "recall, warm", "new in lists"]);
    for row in rows {
        let name = row.epsilon.map_or_else(|| row.method.clone(), |e| format!("{}, ε {e}", row.method));
        let mut cells = vec![name, row.k.to_string()];
        cells.extend([row.recall_unseen, row.ndcg_unseen, row.recall_all, row.recall_warm].map(|v| format!("{v:.4}")));
        cells.push(format!("{:.3}", row.unseen_share));
        out.add_row(cells);
    }
    out.to_string()
}

/// Histories beside recommendations, one table per user, at most `width` columns wide.
pub fn samples_table(samples: &[Sample], width: u16) -> String {
    let mut out = String::new();
    for sample in samples {
        let mut grid = Table::new();
        grid.load_preset(UTF8_FULL_CONDENSED)
            .force_no_tty()
            .set_content_arrangement(ContentArrangement::DynamicFullWidth)
            .set_width(width.max(40));
        let mut header = vec![format!("user {}", sample.user)];
        header.extend(sample.lists.iter().map(|l| l.model.clone()));
        grid.set_header(header);
        let mut history: Vec<String> = Vec::new();
        if sample.history_omitted > 0 {
            history.push(format!("… {} earlier", sample.history_omitted));
        }
        history.extend(sample.history.iter().map(|i| i.title.clone()));
        history.push(format!("→ {}", sample.target.title));
        let longest = sample.lists.iter().map(|l| l.items.len()).max().unwrap_or(0);
        for row in 0..longest.max(history.len()) {
            let mut cells = vec![Cell::new(history.get(row).map_or("", String::as_str))];
            let place = |list: &SampleList| {
                let item = list.items.get(row);
                Cell::new(item.map_or(String::new(), |i| ranked(row + 1, i)))
            };
            cells.extend(sample.lists.iter().map(place));
            grid.add_row(cells);
        }
        out += &grid.to_string();
        out.push('\n');
    }
    out
}

fn ranked(rank: usize, item: &SampleItem) -> String {
    let mark = if item.is_target { "✓ " } else { "" };
    format!("{rank}. {mark}{}", item.title)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::made_up;

    #[test]
    fn tables_hold_every_row_and_fit_the_width() {
        let (report, extras) = made_up();
        let metrics = metrics_table(&extras.tables[0], "rqt");
        assert!(metrics.contains("▸ rqt") && metrics.contains("content-knn"));
        assert!(!metrics.contains('\u{1b}'));
        let cold = cold_start_table(&report.cold_start);
        assert!(cold.contains("content-knn"));
        let samples = samples_table(&extras.samples, 100);
        assert!(samples.lines().all(|l| l.chars().count() <= 100), "{samples}");
        assert!(samples.contains('→') && samples.contains('✓'));
    }

    #[test]
    fn bars_are_in_proportion() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.0), "████████████");
        assert_eq!(bar(0.5), "██████");
    }
}
