//! The page's tables of numbers: models, and methods on new products.

use std::fmt::Write as _;

use super::html::{escape, grouped, protocols};
use super::{ColdStartRow, DemoReport, Extras, MetricSet, MetricsRow, MetricsTable};

/// What a model is, for readers who do not know its name.
pub(super) fn about(model: &str) -> &'static str {
    match model {
        "popular" => "what sells most",
        "itemknn" | "item-knn" => "bought by the same users",
        "content-knn" => "similar text",
        "sasrec" => "transformer over item embeddings",
        "rqt" => "transformer over semantic IDs, one position per item",
        "rqt-codes" => "rqt, searched by its codes alone",
        "hybrid" => "rqt, what followed and similar text, in one ranking",
        "tiger" => "encoder-decoder over semantic IDs",
        "mf" => "matrix factorization",
        "random" => "control",
        _ => "",
    }
}

fn named(model: &str) -> String {
    match about(model) {
        "" => escape(model),
        text => format!("{}<small>{text}</small>", escape(model)),
    }
}

/// A bar with an optional interval; all in the unit of `top`, the right end.
fn meter(value: f64, half: Option<f64>, top: f64) -> String {
    let scale = |v: f64| (100.0 * v / top.max(1e-12)).clamp(0.0, 100.0);
    let mut track = format!("<span class=\"fill\" style=\"width:{:.2}%\"></span>", scale(value));
    let mut text = format!("{value:.4}");
    if let Some(half) = half {
        let (from, to) = (scale(value - half), scale(value + half));
        let _ = write!(track, "<span class=\"whisker\" style=\"left:{from:.2}%;width:{:.2}%\"></span>", to - from);
        let _ = write!(text, " <i>± {half:.4}</i>");
    }
    format!("<div class=\"meter\"><span class=\"track\">{track}</span><span class=\"value\">{text}</span></div>")
}

/// The class of a row or heading of the highlighted model.
pub(super) fn own(model: &str, highlight: &str) -> &'static str {
    if model == highlight { " class=\"own\"" } else { "" }
}

/// The metrics tables, one per protocol.
pub(super) fn metrics(report: &DemoReport, extras: &Extras) -> anyhow::Result<String> {
    let tables = protocols(report, extras);
    if tables.iter().all(|t| t.rows.is_empty()) {
        return Ok(String::new());
    }
    let mut out = String::from(
        "<section><h2>How good are the lists?</h2>\n<p>Each user's last item is hidden and looked for in a \
         ranking of the whole catalogue. recall@10 is the share of users who find it among the first ten; the \
         thin line is the 95 % interval over users.</p>\n",
    );
    for table in &tables {
        metrics_table(&mut out, table, &extras.highlight)?;
    }
    out += "</section>\n";
    Ok(out)
}

fn metrics_table(out: &mut String, table: &MetricsTable, highlight: &str) -> std::fmt::Result {
    let reach = |r: &MetricsRow| r.metrics.recall_10 + r.ci95.map_or(0.0, |c| c.recall_10);
    let top = table.rows.iter().map(reach).fold(0.0, f64::max);
    let coverage = table.rows.iter().any(|r| r.coverage_10.is_some());
    writeln!(
        out,
        "<div class=\"card\"><h3>{}, {} users</h3><div class=\"scroll\"><table><thead><tr><th>model</th>\
         <th class=\"wide\">recall@10</th><th>recall@5</th><th>ndcg@5</th><th>ndcg@10</th><th>mrr@10</th>{}</tr></thead><tbody>",
        escape(&table.title),
        grouped(table.users),
        if coverage { "<th>coverage@10</th>" } else { "" },
    )?;
    let columns: [fn(&MetricSet) -> f64; 4] = [|m| m.recall_5, |m| m.ndcg_5, |m| m.ndcg_10, |m| m.mrr_10];
    for row in &table.rows {
        write!(
            out,
            "<tr{}><td>{}</td><td class=\"wide\">{}</td>",
            own(&row.model, highlight),
            named(&row.model),
            meter(row.metrics.recall_10, row.ci95.map(|c| c.recall_10), top)
        )?;
        for column in columns {
            let value = column(&row.metrics);
            let best = table.rows.iter().all(|r| column(&r.metrics) <= value);
            let class = if best { " class=\"best\"" } else { "" };
            write!(out, "<td{class}>{value:.4}</td>")?;
        }
        if coverage {
            match row.coverage_10 {
                Some(share) => write!(out, "<td>{share:.3}</td>")?,
                None => out.push_str("<td></td>"),
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></div>\n");
    Ok(())
}

/// Recall on products that training has not seen.
pub(super) fn cold_start(report: &DemoReport, extras: &Extras) -> anyhow::Result<String> {
    let rows = &report.cold_start;
    if rows.is_empty() {
        return Ok(String::new());
    }
    let top = rows.iter().map(|r| r.recall_unseen).fold(0.0, f64::max);
    let mut out = String::from(
        "<section><h2>New products</h2>\n<p>Products without a single interaction in training. They get semantic \
         IDs from the frozen quantizer and join the search tree; nothing is retrained. Recall is over users \
         whose next item is such a product.</p>\n<div class=\"card\"><div class=\"scroll\"><table><thead><tr>\
         <th>method</th><th class=\"wide\">recall on new</th><th>k</th><th>ndcg on new</th><th>recall, all</th>\
         <th>recall, warm</th><th>new in lists</th></tr></thead><tbody>\n",
    );
    for row in rows {
        let ColdStartRow { method, epsilon, k, .. } = row;
        let name = epsilon.map_or_else(|| escape(method), |e| format!("{}, ε {e}", escape(method)));
        let name = match about(method) {
            "" => name,
            text => format!("{name}<small>{text}</small>"),
        };
        let class = if method.starts_with(extras.highlight.as_str()) && !extras.highlight.is_empty() {
            " class=\"own\""
        } else {
            ""
        };
        writeln!(
            out,
            "<tr{class}><td>{name}</td><td class=\"wide\">{}</td><td>{k}</td><td>{:.4}</td><td>{:.4}</td><td>{:.4}</td><td>{:.3}</td></tr>",
            meter(row.recall_unseen, None, top),
            row.ndcg_unseen,
            row.recall_all,
            row.recall_warm,
            row.unseen_share,
        )?;
    }
    out += "</tbody></table></div></div></section>\n";
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::made_up;

    #[test]
    fn bars_are_in_proportion_and_intervals_stay_inside() {
        let bar = meter(0.1, Some(0.2), 0.2);
        assert!(bar.contains("width:50.00%") && bar.contains("0.1000 <i>± 0.2000</i>"));
        assert!(bar.contains("left:0.00%;width:100.00%"), "{bar}");
        assert!(!meter(0.0, None, 0.0).contains("NaN"));
    }

    #[test]
    fn every_model_has_a_row_and_the_best_value_is_set_off() {
        let (report, extras) = made_up();
        let html = metrics(&report, &extras).unwrap();
        assert_eq!(html.matches("<tr").count(), 2 * 6);
        assert_eq!(html.matches("<tr class=\"own\"").count(), 2);
        assert_eq!(html.matches("class=\"best\"").count(), 2 * 4);
        let cold = cold_start(&report, &extras).unwrap();
        assert_eq!(cold.matches("<tr").count(), 4);
    }
}
