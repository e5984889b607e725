//! The page's other parts: curves, IDs, users, time, protocol.

use std::fmt::Write as _;

use super::charts::{COLORS, Line, SHADES, heat_map, line_chart};
use super::html::{duration, escape, grouped};
use super::tables::own;
use super::{Curve, CurvePoint, DemoReport, Extras, Sample, SampleItem};

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
        .filter_map(|l| place(l).map(|n| format!("{} found it at rank {}", escape(&l.model), n + 1)))
        .collect();
    writeln!(
        out,
        "<div class=\"card user\"><h3>User {}<span>{}</span></h3><div class=\"columns\"><div><h4>history</h4><ol class=\"items\">",
        escape(&sample.user),
        if found.is_empty() { "not found by these lists".to_owned() } else { found.join(", ") },
    )?;
    if sample.history_omitted > 0 {
        writeln!(out, "<li class=\"more\">… {} earlier</li>", sample.history_omitted)?;
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
        writeln!(out, "<div><h4{class}>{}</h4><ol class=\"items ranked\">", escape(&list.model))?;
        for entry in &list.items {
            let (class, mark) = if entry.is_target { (" class=\"hit\"", " <b>✓ taken next</b>") } else { ("", "") };
            writeln!(out, "<li{class}>{}{mark}{}</li>", escape(&entry.title), details(entry))?;
        }
        out.push_str("</ol></div>\n");
    }
    out.push_str("</div></div>\n");
    Ok(())
}

/// Category, semantic ID and score, as far as known.
fn details(entry: &SampleItem) -> String {
    let mut model = Vec::new();
    if !entry.sid.is_empty() {
        let sid = escape(&entry.sid);
        model.push(format!("<span class=\"chip mono\">{sid}</span>"));
    }
    if let Some(score) = entry.score {
        model.push(format!("{score:.2}").replace('-', "−"));
    }
    if entry.category.is_empty() && model.is_empty() {
        return String::new();
    }
    format!("<small>{} <span class=\"code\">{}</span></small>", escape(&entry.category), model.join(" "))
}

/// Loss and validation recall over training.
pub(super) fn curves(extras: &Extras) -> anyhow::Result<String> {
    let curves = &extras.curves;
    if curves.iter().all(|c| c.points.is_empty()) {
        return Ok(String::new());
    }
    let epochs = curves.iter().flat_map(|c| &c.points).any(|p| p.epoch > 0.0);
    let (label, x): (_, fn(&CurvePoint) -> f64) =
        if epochs { ("epoch", |p| p.epoch) } else { ("step", |p| p.step as f64) };
    let lines = |y: fn(&CurvePoint) -> Option<f64>| -> Vec<Line> {
        let line = |(color, curve): (usize, &Curve)| Line {
            color,
            points: curve.points.iter().filter_map(|p| Some((x(p), y(p)?))).collect(),
        };
        curves.iter().enumerate().map(line).collect()
    };
    let name = |(n, curve): (usize, &Curve)| legend_entry(n, &escape(&curve.model));
    let legend: String = curves.iter().enumerate().map(name).collect();
    Ok(format!(
        "<section><h2>How it learned</h2>\n<p>Training stops when recall on the validation items no longer \
         rises; the best checkpoint is kept.</p>\n<div class=\"pair\"><div class=\"card\"><h3>Training loss</h3>{}<div class=\"legend\">{legend}</div></div>\n<div class=\"card\"><h3>Validation recall@10</h3>\
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
        ("distinct before suffix", format!("{} of {}", grouped(t.unique_prefixes), grouped(t.items))),
        ("largest shared group", t.max_group.to_string()),
        ("suffix codes", t.suffix_size.to_string()),
        ("relative error", format!("{:.3}", t.relative_error)),
        ("fit", duration(t.fit_seconds)),
    ];
    let mut out = String::from(
        "<section><h2>Semantic IDs</h2>\n<p>Each level of an ID refines the one before. Good IDs use all codes \
         about equally and leave few products with the same ID. One cell is one code; the stronger its \
         color, the more products.</p>\n<div class=\"card\"><dl class=\"facts\">",
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
            let perplexity = t.perplexity.get(level).map_or(String::new(), |p| format!(", perplexity {p:.0}"));
            writeln!(
                out,
                "<div class=\"level\"><p><b>Level {level}</b> · {used} of {} codes used{perplexity}, at most {most} products on one</p>{}</div>",
                counts.len(),
                heat_map(counts)?
            )?;
        }
        let cells =
            (0..SHADES).map(|s| format!("<i style=\"background:var(--h{s})\"></i>")).collect::<Vec<_>>().concat();
        writeln!(out, "<div class=\"scale\"><span>unused</span>{cells}<span>most used</span></div></div>")?;
    }
    if !extras.prefixes.is_empty() {
        out += "<div class=\"card\"><h3>What a prefix stands for</h3><div class=\"prefixes\">";
        for example in &extras.prefixes {
            let titles: Vec<String> = example.titles.iter().map(|t| format!("<li>{}</li>", escape(t))).collect();
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
        write!(bars, "<i style=\"flex:{flex:.5};background:var(--c{color})\"></i>")?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::made_up;

    #[test]
    fn users_show_history_target_and_hits() {
        let (_, extras) = made_up();
        let html = samples(&extras).unwrap();
        assert_eq!(html.matches("class=\"card user\"").count(), 5);
        assert_eq!(html.matches("<li class=\"hit\"").count(), 3);
        assert!(html.contains("rqt found it at rank 3"));
        assert!(html.contains("… 7 earlier"));
        assert!(html.contains("−2.10"));
    }

    #[test]
    fn one_map_per_level_and_one_legend_entry_per_stage() {
        let (report, extras) = made_up();
        let ids = tokenizer(&report, &extras).unwrap();
        assert_eq!(ids.matches("<svg").count(), 3);
        let time = timing(&report).unwrap();
        assert_eq!(time.matches("<span>").count(), report.timing.0.len());
        assert!(time.contains("2 min 01 s"));
    }

    #[test]
    fn curves_fall_back_to_steps() {
        let (_, mut extras) = made_up();
        assert!(curves(&extras).unwrap().contains("epoch"));
        for point in extras.curves.iter_mut().flat_map(|c| &mut c.points) {
            point.epoch = 0.0;
        }
        assert!(curves(&extras).unwrap().contains("\nstep\n"));
    }
}
