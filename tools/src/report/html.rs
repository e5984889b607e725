//! The page: one offline file, light and dark, wide and narrow.

use std::fmt::Write as _;

use anyhow::Context;

use super::{DemoReport, Extras, MetricsTable, charts, sections, tables};

const TEMPLATE: &str = include_str!("../page/report.html");
const STYLE: &str = include_str!("../page/report.css");

/// Renders the report as a self-contained page; every text from the data is escaped.
pub fn render_html(report: &DemoReport, extras: &Extras) -> anyhow::Result<String> {
    let dataset = if extras.dataset.is_empty() { "a catalogue" } else { &extras.dataset };
    let body = [
        tables::metrics(report, extras)?,
        sections::curves(extras)?,
        tables::cold_start(report, extras)?,
        sections::tokenizer(report, extras)?,
        sections::samples(extras)?,
        sections::timing(report)?,
        sections::notes(extras)?,
    ]
    .concat();
    page(
        &format!("sidrec on {}", escape(dataset)),
        &format!("Generative recommendation on {}", escape(dataset)),
        LEAD,
        &tiles(report, extras)?,
        &body,
        &footer(extras),
    )
}

/// A self-contained page in the report's style; all parts are HTML.
pub(crate) fn page(
    title: &str,
    headline: &str,
    lead: &str,
    tiles: &str,
    body: &str,
    footer: &str,
) -> anyhow::Result<String> {
    let style = format!("{STYLE}{}", charts::style());
    let values = [("title", title), ("style", &style), ("headline", headline), ("lead", lead)];
    fill(TEMPLATE, &[&values[..], &[("tiles", tiles), ("body", body), ("footer", footer)]].concat())
}

const LEAD: &str = "Every product has a short code, its semantic ID, made from its text. A transformer reads \
a user's history and writes the code of the next product; a beam search that only follows codes of real \
products turns this into a ranked list.";

/// Replaces `{{name}}` in one pass, so that values are never searched for names.
fn fill(template: &str, values: &[(&str, &str)]) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, tail) = after.split_once("}}").context("report template: open braces")?;
        let value = values.iter().find(|(n, _)| *n == name);
        out.push_str(before);
        out.push_str(value.with_context(|| format!("report template: no value for {name}"))?.1);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// Text as HTML, for elements and quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// 12345 as "12,345".
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds as "0.42 s", "12 s" or "3 min 05 s".
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else if seconds < 60.0 {
        format!("{seconds:.0} s")
    } else {
        let whole = seconds.round();
        format!("{:.0} min {:02.0} s", (whole / 60.0).floor(), whole % 60.0)
    }
}

/// The tables of the extras, or one made of the report's metrics.
pub(super) fn protocols(report: &DemoReport, extras: &Extras) -> Vec<MetricsTable> {
    if !extras.tables.is_empty() {
        return extras.tables.clone();
    }
    let row = |(model, metrics): (&str, &super::MetricSet)| super::MetricsRow {
        model: model.to_owned(),
        metrics: *metrics,
        ..super::MetricsRow::default()
    };
    vec![MetricsTable {
        title: "Seen items excluded".to_owned(),
        seen: "exclude".to_owned(),
        users: report.users,
        rows: report.models.iter().map(row).collect(),
    }]
}

fn tiles(report: &DemoReport, extras: &Extras) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut tile = |class: &str, value: &str, label: &str| {
        writeln!(out, "<div class=\"tile{class}\"><b>{}</b><span>{}</span></div>", escape(value), escape(label))
    };
    if let Some(own) = report.models.find(&extras.highlight) {
        let mut label = format!("recall@10 of {}", extras.highlight);
        let best = report
            .models
            .iter()
            // What is made of the highlighted model is no rival of it.
            .filter(|(name, _)| *name != extras.highlight && !tables::about(name).contains(&extras.highlight))
            .max_by(|a, b| a.1.recall_10.total_cmp(&b.1.recall_10));
        if let Some(popular) = report.models.find("popular").filter(|m| m.recall_10 > 0.0) {
            let times = own.recall_10 / popular.recall_10;
            write!(label, "; {times:.1} × popularity")?;
        }
        if let Some((name, metrics)) = best.filter(|(name, m)| *name != "popular" && m.recall_10 > 0.0) {
            let times = own.recall_10 / metrics.recall_10;
            write!(label, ", {times:.2} × {name}")?;
        }
        tile(" key", &format!("{:.4}", own.recall_10), &label)?;
    }
    tile("", &grouped(report.items), "items in the catalogue")?;
    tile("", &grouped(report.users), "users")?;
    let mean = report.interactions as f64 / report.users.max(1) as f64;
    tile("", &grouped(report.interactions), &format!("interactions, {mean:.1} a user"))?;
    let unique = format!("{:.3}", report.tokenizer.unique_fraction);
    tile("", &unique, "share of IDs distinct before the suffix")?;
    let total: f64 = report.timing.iter().map(|(_, seconds)| seconds).sum();
    if total > 0.0 {
        tile("", &duration(total), "from raw items to this page")?;
    }
    Ok(out)
}

fn footer(extras: &Extras) -> String {
    let mut parts = Vec::new();
    if !extras.command.is_empty() {
        parts.push(format!("Made by <code>{}</code>", escape(&extras.command)));
    }
    let seeds: Vec<String> = extras.seeds.iter().map(u64::to_string).collect();
    match seeds.as_slice() {
        [] => {}
        [one] => parts.push(format!("seed {one}")),
        more => parts.push(format!("seeds {}", more.join(", "))),
    }
    parts.push(format!("sidrec {}", env!("CARGO_PKG_VERSION")));
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::made_up;

    #[test]
    fn the_page_is_self_contained_and_escapes_titles() {
        let (report, mut extras) = made_up();
        extras.samples[0].target.title = "<script>alert(\"x\")</script> & {{body}}".to_owned();
        let page = render_html(&report, &extras).unwrap();
        assert!(page.starts_with("<!doctype html>"));
        assert!(page.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; {{body}}"));
        for forbidden in ["<script", "http://", "https://", "@import", "url(", "src="] {
            let hits = page.matches(forbidden).count();
            let namespaces = page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
            let allowed = if forbidden == "http://" { namespaces } else { 0 };
            assert_eq!(hits, allowed, "{forbidden}");
        }
    }

    #[test]
    fn an_empty_report_renders() {
        let page = render_html(&DemoReport::default(), &Extras::default()).unwrap();
        assert!(page.contains("</html>"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(duration(0.42), "0.4 s");
        assert_eq!(duration(185.0), "3 min 05 s");
        assert_eq!(duration(119.7), "2 min 00 s");
    }

    #[test]
    fn a_template_with_an_unknown_name_is_an_error() {
        assert!(fill("a {{b}} c", &[("x", "y")]).is_err());
        assert_eq!(fill("a {{x}} c", &[("x", "{{x}}")]).unwrap(), "a {{x}} c");
    }
}
