//! The parts of the page.

use std::fmt::Write as _;

use super::charts::{COLORS, Line, SHADES, heat_map, line_chart};
use super::html::{duration, escape, grouped, tables};
use super::{
    ColdStartRow, Curve, CurvePoint, DemoReport, Extras, MetricSet, MetricsTable, Sample,
    SampleItem,
};

/// What a model is, for readers who do not know its name.
fn about(model: &str) -> &'static str {
    match model {
        "popular" => "what sells most",
        "itemknn" | "item-knn" => "bought by the same users",
        "content-knn" => "similar text",
        "sasrec" => "transformer over item embeddings",
        "rqt" => "transformer over semantic IDs, one position per item",
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
    let mut track = format!(
        "<span class=\"fill\" style=\"width:{:.2}%\"></span>",
        scale(value)
    );
    let mut text = format!("{value:.4}");
    if let Some(half) = half {
        let (from, to) = (scale(value - half), scale(value + half));
        let _ = write!(
            track,
            "<span class=\"whisker\" style=\"left:{from:.2}%;width:{:.2}%\"></span>",
            to - from
        );
        let _ = write!(text, " <i>± {half:.4}</i>");
    }
    format!(
        "<div class=\"meter\"><span class=\"track\">{track}</span><span class=\"value\">{text}</span></div>"
    )
}

/// The metrics tables, one per protocol.
pub(super) fn metrics(report: &DemoReport, extras: &Extras) -> anyhow::Result<String> {
    let tables = tables(report, extras);
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
    let reach = |r: &super::MetricsRow| r.metrics.recall_10 + r.ci95.map_or(0.0, |c| c.recall_10);
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
    let columns: [fn(&MetricSet) -> f64; 4] =
        [|m| m.recall_5, |m| m.ndcg_5, |m| m.ndcg_10, |m| m.mrr_10];
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

fn own(model: &str, highlight: &str) -> &'static str {
    if model == highlight {
        " class=\"own\""
    } else {
        ""
    }
}

/// Users with their histories and lists.
pub(super) fn samples(extras: &Extras) -> anyhow::Result<String> {
    if extras.samples.is_empty() {
        return Ok(String::new());
    }
    let mut out = String::from(
        "<section><h2>What users get to see</h2>\n<p>Histories, oldest first, beside what was recommended. The \
         dashed item is what the user really took next; no model has seen it.</p>\n",
    );
    for sample in &extras.samples {
        user(&mut out, sample, &extras.highlight)?;
    }
    out += "</section>\n";
    Ok(out)
}

fn user(out: &mut String, sample: &Sample, highlight: &str) -> std::fmt::Result {
    let place = |list: &super::SampleList| list.items.iter().position(|i| i.is_target);
    let found: Vec<String> = sample
        .lists
        .iter()
        .filter_map(|l| {
            place(l).map(|n| format!("{} found it at rank {}", escape(&l.model), n + 1))
        })
        .collect();
    writeln!(
        out,
        "<div class=\"card user\"><h3>User {}<span>{}</span></h3><div class=\"columns\"><div><h4>history</h4><ol class=\"items\">",
        escape(&sample.user),
        if found.is_empty() {
            "not found by these lists".to_owned()
        } else {
            found.join(", ")
        },
    )?;
    if sample.history_omitted > 0 {
        writeln!(
            out,
            "<li class=\"more\">… {} earlier</li>",
            sample.history_omitted
        )?;
    }
    for entry in &sample.history {
        writeln!(out, "<li>{}{}</li>", escape(&entry.title), details(entry))?;
    }
    writeln!(
        out,
        "<li class=\"target\"><b>taken next</b>{}{}</li></ol></div>",
        escape(&sample.target.title),
        details(&sample.target)
    )?;
    for list in &sample.lists {
        let class = own(&list.model, highlight);
        writeln!(
            out,
            "<div><h4{class}>{}</h4><ol class=\"items\">",
            escape(&list.model)
        )?;
        for entry in &list.items {
            let (class, mark) = if entry.is_target {
                (" class=\"hit\"", " <b>✓ taken next</b>")
            } else {
                ("", "")
            };
            writeln!(
                out,
                "<li{class}>{}{mark}{}</li>",
                escape(&entry.title),
                details(entry)
            )?;
        }
        out.push_str("</ol></div>\n");
    }
    out.push_str("</div></div>\n");
    Ok(())
}

/// Category, semantic ID and score, as far as known.
fn details(entry: &SampleItem) -> String {
    let mut parts = Vec::new();
    if !entry.category.is_empty() {
        parts.push(escape(&entry.category));
    }
    if !entry.sid.is_empty() {
        parts.push(format!(
            "<span class=\"chip mono\">{}</span>",
            escape(&entry.sid)
        ));
    }
    if let Some(score) = entry.score {
        parts.push(format!("{score:.2}"));
    }
    if parts.is_empty() {
        return String::new();
    }
    format!("<small>{}</small>", parts.join(" · "))
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
        let ColdStartRow {
            method, epsilon, k, ..
        } = row;
        let name = epsilon.map_or_else(|| escape(method), |e| format!("{}, ε {e}", escape(method)));
        let name = match about(method) {
            "" => name,
            text => format!("{name}<small>{text}</small>"),
        };
        let class = if method.starts_with(extras.highlight.as_str()) && !extras.highlight.is_empty()
        {
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

/// Loss and validation recall over training.
pub(super) fn curves(extras: &Extras) -> anyhow::Result<String> {
    let curves = &extras.curves;
    if curves.iter().all(|c| c.points.is_empty()) {
        return Ok(String::new());
    }
    let epochs = curves.iter().flat_map(|c| &c.points).any(|p| p.epoch > 0.0);
    let (label, x): (_, fn(&CurvePoint) -> f64) = if epochs {
        ("epoch", |p| p.epoch)
    } else {
        ("step", |p| p.step as f64)
    };
    let lines = |y: fn(&CurvePoint) -> Option<f64>| -> Vec<Line> {
        let line = |(color, curve): (usize, &Curve)| Line {
            color,
            points: curve
                .points
                .iter()
                .filter_map(|p| Some((x(p), y(p)?)))
                .collect(),
        };
        curves.iter().enumerate().map(line).collect()
    };
    let name = |(n, curve): (usize, &Curve)| legend_entry(n, &escape(&curve.model));
    let legend: String = curves.iter().enumerate().map(name).collect();
    Ok(format!(
        "<section><h2>How it learned</h2>\n<p>Training stops when recall on the validation items no longer \
         rises; the best checkpoint is kept.</p>\n<div class=\"pair\"><div class=\"card\"><h3>Training loss, nats \
         per item</h3>{}<div class=\"legend\">{legend}</div></div>\n<div class=\"card\"><h3>Validation recall@10</h3>\
         {}<div class=\"legend\">{legend}</div></div></div></section>\n",
        line_chart(&lines(|p| p.loss), label, false)?,
        line_chart(&lines(|p| p.val_recall_10), label, true)?,
    ))
}

fn legend_entry(color: usize, text: &str) -> String {
    let n = color % COLORS;
    format!("<span><i style=\"background:var(--c{n})\"></i>{text}</span>")
}

/// Codes in use, and what they stand for.
pub(super) fn tokenizer(report: &DemoReport, extras: &Extras) -> anyhow::Result<String> {
    let t = &report.tokenizer;
    if t.levels == 0 {
        return Ok(String::new());
    }
    let sizes: Vec<String> = t.codebook_sizes.iter().map(u32::to_string).collect();
    let facts = [
        ("quantizer", t.method.clone()),
        ("content encoder", t.encoder.clone()),
        ("codes per level", sizes.join(" · ")),
        (
            "distinct before suffix",
            format!("{} of {}", grouped(t.unique_prefixes), grouped(t.items)),
        ),
        ("largest shared group", t.max_group.to_string()),
        ("suffix codes", t.suffix_size.to_string()),
        ("relative error", format!("{:.3}", t.relative_error)),
        ("fit", duration(t.fit_seconds)),
    ];
    let mut out = String::from(
        "<section><h2>Semantic IDs</h2>\n<p>Each level of an ID refines the one before. Good IDs use all codes \
         about equally and leave few products with the same ID. One cell is one code; darker means more \
         products.</p>\n<div class=\"card\"><dl class=\"facts\">",
    );
    for (name, value) in facts {
        write!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value))?;
    }
    out += "</dl></div>\n";
    if !extras.code_counts.is_empty() {
        out += "<div class=\"card\">";
        for (level, counts) in extras.code_counts.iter().enumerate() {
            let used = counts.iter().filter(|&&c| c > 0).count();
            let most = counts.iter().copied().max().unwrap_or(0);
            let perplexity = t
                .perplexity
                .get(level)
                .map_or(String::new(), |p| format!(", perplexity {p:.0}"));
            writeln!(
                out,
                "<div class=\"level\"><p><b>Level {level}</b> · {used} of {} codes used{perplexity}, at most {most} products on one</p>{}</div>",
                counts.len(),
                heat_map(counts)?
            )?;
        }
        let cells = (0..SHADES)
            .map(|s| format!("<i style=\"background:var(--h{s})\"></i>"))
            .collect::<Vec<_>>()
            .concat();
        writeln!(
            out,
            "<div class=\"scale\"><span>unused</span>{cells}<span>most used of the level</span></div></div>"
        )?;
    }
    if !extras.prefixes.is_empty() {
        out += "<div class=\"card\"><h3>What a prefix stands for</h3><div class=\"prefixes\">";
        for example in &extras.prefixes {
            let titles: Vec<String> = example
                .titles
                .iter()
                .map(|t| format!("<li>{}</li>", escape(t)))
                .collect();
            let titles = titles.concat();
            writeln!(
                out,
                "<div><p><span class=\"chip mono\">{}</span> {} products</p><ul>{titles}</ul></div>",
                escape(&example.prefix),
                grouped(example.items)
            )?;
        }
        out += "</div></div>\n";
    }
    out += "</section>\n";
    Ok(out)
}

/// Where the time went.
pub(super) fn timing(report: &DemoReport) -> anyhow::Result<String> {
    let total: f64 = report.timing.iter().map(|(_, s)| s).sum();
    if total <= 0.0 {
        return Ok(String::new());
    }
    let (mut bars, mut legend) = (String::new(), String::new());
    for (n, (stage, &seconds)) in report.timing.iter().enumerate() {
        let (color, flex) = (n % COLORS, seconds / total);
        write!(
            bars,
            "<i style=\"flex:{flex:.5};background:var(--c{color})\"></i>"
        )?;
        let text = format!("{}, {}", escape(stage), duration(seconds));
        legend += &legend_entry(n, &text);
    }
    Ok(format!(
        "<section><h2>Where the time went</h2>\n<div class=\"card\"><div class=\"stack\">{bars}</div><div \
         class=\"legend\">{legend}</div></div></section>\n"
    ))
}

/// How things were measured.
pub(super) fn notes(extras: &Extras) -> anyhow::Result<String> {
    if extras.notes.is_empty() {
        return Ok(String::new());
    }
    let mut out = String::from("<section><h2>Protocol</h2>\n<ul class=\"notes\">\n");
    for note in &extras.notes {
        writeln!(out, "<li>{}</li>", escape(note))?;
    }
    out += "</ul></section>\n";
    Ok(out)
}
