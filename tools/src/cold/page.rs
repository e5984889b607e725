//! The page of a run: curves with bands, the table, categories, exposure, failures; one offline file.

use super::chart::{Line, chart};
use super::{ColdReport, Training};
use crate::report::{ColdStartRow, duration, escape, grouped, page};
use anyhow::Result;
use seqmodel::train::Stop;
use std::fmt::Write as _;

/// Lines of a chart.
const LINES: usize = 6;

/// Renders `report`; texts of the data are escaped.
pub(super) fn render(report: &ColdReport, command: &str) -> Result<String> {
    let chosen = chosen(report);
    let body = [
        curves(report, &chosen),
        table(report),
        paired(report),
        categories(report),
        exposure(report),
        failures(report),
        notes(report),
    ]
    .concat();
    let name = report.protocol.name();
    let lead = "Items that training has never seen: which methods recommend them to the users who wanted them next, and \
                what it costs everybody else.";
    let footer = format!(
        "Made by <code>{}</code> · seed {} · sidrec {}",
        escape(command),
        report.seed,
        env!("CARGO_PKG_VERSION")
    );
    page(
        &format!("Cold start, protocol {name}"),
        &format!("Cold start, protocol {name}"),
        lead,
        &tiles(report),
        &body,
        &footer,
    )
}

fn tiles(report: &ColdReport) -> String {
    let mut out = String::new();
    let mut tile = |class: &str, value: &str, label: &str| {
        let _ =
            writeln!(out, "<div class=\"tile{class}\"><b>{}</b><span>{}</span></div>", escape(value), escape(label));
    };
    if let Some(best) = best(report) {
        let label = format!("recall@10 on unseen targets of {}, a tenth of all places", best.method);
        tile(" key", &format!("{:.4}", best.recall_unseen), &label);
        let label = "recall@10 of the same lists over all users".to_string();
        tile("", &format!("{:.4}", best.recall_all), &label);
    }
    tile("", &grouped(report.held_out_items), "items held out");
    tile("", &grouped(report.removed_interactions), "interactions removed");
    tile("", &grouped(report.users), "users asked");
    tile("", &grouped(report.users_with_unseen_target), "of them for an unseen item");
    let stages: f64 = report.seconds.iter().map(|(_, seconds)| seconds).sum();
    let training: f64 = report.trainings.iter().map(|training| training.seconds).sum();
    tile("", &duration(stages + training), "of work");
    out
}

/// The row with the highest recall on unseen targets, at a share of 0.1 and a length of ten.
fn best(report: &ColdReport) -> Option<&ColdStartRow> {
    let rows = report.rows.iter().filter(|row| row.k == 10 && row.epsilon.is_none_or(|e| e == 0.1));
    rows.max_by(|a, b| a.recall_unseen.total_cmp(&b.recall_unseen))
}

/// Methods of the charts: the best ones with places, the plain neighbours by content among them.
fn chosen(report: &ColdReport) -> Vec<String> {
    let at = |row: &&ColdStartRow| row.k == 10 && row.epsilon == Some(0.1);
    let mut rows: Vec<_> = report.rows.iter().filter(at).collect();
    rows.sort_by(|a, b| b.recall_unseen.total_cmp(&a.recall_unseen));
    let mut names: Vec<String> = rows.iter().take(LINES - 1).map(|row| row.method.clone()).collect();
    let bar = "content-knn, slots".to_string();
    if !names.contains(&bar) && rows.iter().any(|row| row.method == bar) {
        names.push(bar);
    }
    names
}

fn legend(names: &[String]) -> String {
    let mut out = String::from("<div class=\"legend\">");
    for (color, name) in names.iter().enumerate() {
        let _ = write!(out, "<span><i style=\"background:var(--c{color})\"></i>{}</span>", escape(name));
    }
    out + "</div>"
}

/// The lines of one chart: for each method, its rows in the order of `key`.
fn lines(
    report: &ColdReport,
    names: &[String],
    key: impl Fn(&ColdStartRow) -> Option<f64>,
    value: impl Fn(&ColdStartRow, f64) -> (f64, f64),
) -> (Vec<Line>, Vec<String>) {
    let mut ticks: Vec<String> = Vec::new();
    let mut lines = Vec::new();
    for (color, name) in names.iter().enumerate() {
        let rows = report.rows.iter().zip(&report.ci95_recall_unseen).filter(|(row, _)| row.method == *name);
        let mut found: Vec<(f64, (f64, f64))> =
            rows.filter_map(|(row, half)| Some((key(row)?, value(row, *half)))).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        ticks = found.iter().map(|(at, _)| at.to_string()).collect();
        lines.push(Line { color, points: found.into_iter().map(|(_, value)| value).collect() });
    }
    (lines, ticks)
}

fn curves(report: &ColdReport, names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let by_share = |row: &ColdStartRow| row.epsilon.filter(|_| row.k == 10);
    let by_length = |row: &ColdStartRow| (row.epsilon == Some(0.1)).then_some(row.k as f64);
    let unseen = |row: &ColdStartRow, half: f64| (row.recall_unseen, half);
    let users = report.users.max(1) as f64;
    let all =
        |row: &ColdStartRow, _: f64| (row.recall_all, 1.96 * (row.recall_all * (1.0 - row.recall_all) / users).sqrt());
    let mut charts = Vec::new();
    let mut add = |title: &str, (lines, ticks): (Vec<Line>, Vec<String>), label: &str| {
        charts.push(format!("<div class=\"card\"><h3>{title}</h3>{}</div>", chart(&lines, &ticks, label)));
    };
    add(
        "Unseen targets found, by share of places",
        lines(report, names, by_share, unseen),
        "share of places for unseen items",
    );
    add("All users, by share of places", lines(report, names, by_share, all), "share of places for unseen items");
    add("Unseen targets found, by length", lines(report, names, by_length, unseen), "length of the list, share 0.1");
    add("By how often training has seen the target", ramp(report, names), "occurrences in training, share 0.1");
    let mut out = String::from(
        "<section><h2>Curves</h2>\n<p>Recall with 95 % intervals over users: the methods that find most unseen targets \
         at a share of 0.1, and neighbours by content.</p>\n",
    );
    for pair in charts.chunks(2) {
        let _ = writeln!(out, "<div class=\"pair\">{}</div><br>", pair.concat());
    }
    out + &legend(names) + "</section>\n"
}

fn ramp(report: &ColdReport, names: &[String]) -> (Vec<Line>, Vec<String>) {
    let mut ticks = Vec::new();
    let mut lines = Vec::new();
    for (color, name) in names.iter().enumerate() {
        let steps: Vec<_> = report.ramp.iter().filter(|row| row.method == *name && row.users > 0).collect();
        ticks = steps.iter().map(|row| row.seen.clone()).collect();
        lines.push(Line { color, points: steps.iter().map(|row| (row.recall, row.ci95)).collect() });
    }
    (lines, ticks)
}

/// A table of `heads` and rows of cells, the first of which names the row.
fn grid(title: &str, about: &str, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = |head: &&str| format!("<th>{}</th>", escape(head));
    let heads: String = heads.iter().map(head).collect();
    let row = |cells: Vec<String>| {
        let cell = |cell: &String| format!("<td>{}</td>", escape(cell));
        let cells: String = cells.iter().map(cell).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = rows.map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<section><h2>{title}</h2>\n<p>{about}</p>\n<div class=\"card\"><div class=\"scroll\"><table><thead><tr>{heads}\
         </tr></thead><tbody>{rows}</tbody></table></div></div></section>\n"
    )
}

fn named(method: &str, epsilon: Option<f64>) -> String {
    epsilon.map_or_else(|| method.to_string(), |share| format!("{method}, ε {share}"))
}

fn table(report: &ColdReport) -> String {
    let rows = report.rows.iter().zip(&report.ci95_recall_unseen).filter(|(row, _)| row.k == 10);
    let cells = |(row, half): (&ColdStartRow, &f64)| {
        let mut cells = vec![named(&row.method, row.epsilon), format!("{:.4} ± {half:.4}", row.recall_unseen)];
        cells.extend([row.ndcg_unseen, row.recall_all, row.ndcg_all, row.recall_warm].map(|x| format!("{x:.4}")));
        cells.push(format!("{:.3}", row.unseen_share));
        cells
    };
    let heads =
        ["method", "recall, unseen", "ndcg, unseen", "recall, all", "ndcg, all", "recall, warm", "unseen in lists"];
    grid(
        "Lists of ten",
        "Methods without ε rank all items together. With ε, that share of each list (slots), or of all lists together \
         (shares), is kept for unseen items.",
        &heads,
        rows.map(cells),
    )
}

fn paired(report: &ColdReport) -> String {
    let against = report.paired.first().map(|row| row.against.clone()).unwrap_or_default();
    let cells = |row: &super::score::Paired| {
        vec![
            named(&row.method, row.epsilon),
            format!("{:+.4} ± {:.4}", row.unseen, row.unseen_ci95),
            if row.unseen_p < 1e-4 { "< 0.0001".into() } else { format!("{:.4}", row.unseen_p) },
            format!("{:+.4} ± {:.4}", row.all, row.all_ci95),
        ]
    };
    let about = format!(
        "Difference in recall@10 to {}, share 0.1, user by user; p of McNemar's exact test on unseen targets.",
        escape(&against)
    );
    grid("Paired", &about, &["method", "unseen targets", "p", "all users"], report.paired.iter().map(cells))
}

fn categories(report: &ColdReport) -> String {
    let mut heads = vec!["category", "users"];
    heads.extend(report.slice_methods.iter().map(String::as_str));
    let cells = |slice: &super::exposure::Slice| {
        let mut cells = vec![slice.category.clone(), slice.users.to_string()];
        cells.extend(slice.recall.iter().map(|recall| format!("{recall:.3}")));
        cells
    };
    grid("By category", "Unseen targets found among ten, share 0.1.", &heads, report.categories.iter().map(cells))
}

fn exposure(report: &ColdReport) -> String {
    let cells = |row: &super::exposure::Exposure| {
        vec![
            named(&row.method, row.epsilon),
            format!("{:.3}", row.coverage),
            format!("{:.3}", row.unseen_share),
            format!("{:.2}", row.popularity_lift),
            format!("{:.3}", row.category_entropy),
        ]
    };
    let first = grid(
        "What the lists show",
        "Share of the catalogue in some list of ten, share of unseen items, mean popularity of what is shown over that of \
         the catalogue, and entropy of the categories of a list in nats.",
        &["method", "coverage", "unseen", "popularity lift", "category entropy"],
        report.exposure.iter().map(cells),
    );
    let cells = |row: &super::exposure::Drawn| {
        vec![
            row.method.clone(),
            row.temperature.to_string(),
            format!("{:.3}", row.category_entropy),
            format!("{:.4}", row.recall_all),
        ]
    };
    let second = grid(
        "Drawn instead of taken",
        "Ten of the first fifty, drawn by their probabilities at a temperature; 0 takes the best.",
        &["method", "temperature", "category entropy", "recall, all"],
        report.temperature.iter().map(cells),
    );
    first + &second
}

fn failures(report: &ColdReport) -> String {
    if report.failures.is_empty() {
        return String::new();
    }
    let mut out = format!(
        "<section><h2>Where it fails</h2>\n<p>Unseen targets that {} ranks furthest back among the unseen items.</p>\n",
        escape(&report.failures_of)
    );
    for failure in &report.failures {
        let title = |title: &String| format!("<li>{}</li>", escape(title));
        let list = |titles: &[String]| -> String { titles.iter().map(title).collect() };
        let rank = failure.rank.map_or_else(|| "behind all that was ranked".to_string(), |rank| format!("rank {rank}"));
        let _ = writeln!(
            out,
            "<div class=\"card user\"><h3>{} <span>{} · {rank}</span></h3><div class=\"columns\"><div><h4>newest of the \
             history</h4><ol class=\"items\">{}</ol></div><div><h4 class=\"own\">unseen items put first</h4>\
             <ol class=\"items\">{}</ol></div></div></div>",
            escape(&failure.target),
            escape(&failure.category),
            list(&failure.history),
            list(&failure.shown)
        );
    }
    out + "</section>\n"
}

fn notes(report: &ColdReport) -> String {
    let choice = |choice: &&str| format!("<li>{}</li>", escape(choice));
    let choices: String = report.choices.iter().map(choice).collect();
    let stages: Vec<String> =
        report.seconds.iter().map(|(stage, seconds)| format!("{} {}", escape(stage), duration(*seconds))).collect();
    let cells = |training: &Training| {
        let end = match training.stop {
            Stop::Epochs => "all epochs done",
            Stop::Patience => "validation got no better",
            Stop::Time => "out of time",
            Stop::Interrupted => "interrupted",
        };
        let Training { model, epochs, steps, best, seconds, .. } = training;
        let (epochs, steps) = (epochs.to_string(), grouped(*steps as usize));
        vec![model.clone(), duration(*seconds), epochs, steps, format!("{best:.4}"), end.to_string()]
    };
    let trained = grid(
        "Training",
        "Each model by its best weights on the validation items, lists of ten.",
        &["model", "time", "epochs", "steps", "recall, validation", "end"],
        report.trainings.iter().map(cells),
    );
    format!(
        "{trained}<section><h2>How it was measured</h2>\n<p>Content by {}, IDs by {}. {}.</p><ul>{choices}</ul>\
         </section>\n",
        escape(&report.encoder),
        escape(&report.method),
        stages.join(", ")
    )
}
