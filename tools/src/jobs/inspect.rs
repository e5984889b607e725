//! Health of a catalogue's IDs, IDs of items, and items under a prefix.

use crate::catalogue::{Catalogue, Collisions};
use crate::error::{Fault, bad_data, fault};
use crate::report::TokenizerReport;
use anyhow::Result;
use rqvae::{Code, SemanticId, SidStats};
use serde::Serialize;
use std::fmt::Write;

/// What `sids inspect --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The health of the IDs.
    #[serde(flatten)]
    pub tokenizer: TokenizerReport,
    /// What was done about collisions, with the figures before.
    pub collisions: Option<Collisions>,
    /// Items that were removed and keep their IDs.
    pub removed: usize,
}

/// All that `sids inspect` says.
pub fn inspection(catalogue: &Catalogue) -> Inspection {
    let collisions = catalogue.origin.collisions.clone();
    Inspection { tokenizer: tokenizer(catalogue), collisions, removed: catalogue.removed.len() }
}

/// The keys that every report has of the IDs.
pub fn tokenizer(catalogue: &Catalogue) -> TokenizerReport {
    let (stats, origin) = (SidStats::of_table(&catalogue.sids), &catalogue.origin);
    TokenizerReport {
        items: stats.items,
        levels: stats.levels,
        codebook_sizes: stats.codebook_sizes,
        usage: stats.usage,
        perplexity: stats.perplexity,
        unique_prefixes: stats.unique_prefixes,
        unique_fraction: stats.unique_fraction,
        max_group: stats.max_group,
        suffix_size: stats.suffix_size,
        reconstruction_mse: origin.reconstruction_mse,
        relative_error: origin.relative_error,
        method: origin.method.clone(),
        encoder: origin.encoder.clone(),
        seed: origin.seed,
        fit_seconds: origin.fit_seconds,
        encode_items_per_second: origin.encode_items_per_second,
    }
}

/// The same for people.
pub fn describe(inspection: &Inspection) -> String {
    let Inspection { tokenizer: report, collisions, removed } = inspection;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<18} {value}");
    };
    let gone = if *removed > 0 { format!(", {removed} of them removed") } else { String::new() };
    line("items", format!("{}{gone}", report.items));
    line("method", format!("{} on {}, seed {}", report.method, report.encoder, report.seed));
    for level in 0..report.levels {
        let filled = (report.usage[level] * 24.0).round() as usize;
        let bar = format!("{}{}", "█".repeat(filled), "░".repeat(24 - filled.min(24)));
        line(
            &format!("level {level}"),
            format!(
                "{bar} {:5.1} % of {} codes used, perplexity {:.0}",
                100.0 * report.usage[level],
                report.codebook_sizes[level],
                report.perplexity[level]
            ),
        );
    }
    line(
        "unique prefixes",
        format!(
            "{} ({:.1} %), largest group {}",
            report.unique_prefixes,
            100.0 * report.unique_fraction,
            report.max_group
        ),
    );
    if let Some(c) = collisions {
        let before = format!("{} unique prefixes, largest group {}", c.unique_prefixes_before, c.max_group_before);
        let error = c.relative_error.map_or_else(String::new, |error| format!(", relative error then {error:.4}"));
        line("collisions", format!("{}: before {before}; {} items moved{error}", c.policy, c.moved));
    }
    line("suffix", format!("{} codes", report.suffix_size));
    line(
        "relative error",
        format!("{:.4} (mean squared error {:.6})", report.relative_error, report.reconstruction_mse),
    );
    line("fit", format!("{:.1} s, then {:.0} items/s encoded", report.fit_seconds, report.encode_items_per_second));
    text
}

/// One line per item: id, semantic ID, title.
///
/// # Errors
/// Bad data naming the ids that the catalogue does not have.
pub fn lookup(catalogue: &Catalogue, ids: &[String]) -> Result<String> {
    let missing: Vec<_> = ids.iter().filter(|id| catalogue.keys.find(id).is_none()).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(bad_data(format!("not in the catalogue: {}", missing.join(", "))));
    }
    let mut text = String::new();
    for item in ids.iter().filter_map(|id| catalogue.keys.find(id)) {
        let (key, sid, title) = (catalogue.keys.key(item), catalogue.sids.sid(item), catalogue.title(item));
        let gone = if catalogue.is_live(item) { "" } else { "\tremoved" };
        let _ = writeln!(text, "{key}\t{sid}\t{title}{gone}");
    }
    Ok(text)
}

/// The children of a prefix such as `12,7` with counts and a few titles; the items themselves under a whole ID.
///
/// # Errors
/// Usage when the prefix is no list of codes; bad data when nothing is under it.
pub fn tree(catalogue: &Catalogue, prefix: &str) -> Result<String> {
    let trie = &catalogue.trie;
    let wrong = |message: String| fault(Fault::Usage, message);
    let codes: Vec<Code> = prefix
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().map_err(|_| wrong(format!("prefix `{prefix}`: `{part}` is no code"))))
        .collect::<Result<_>>()?;
    if codes.len() > trie.levels() {
        return Err(wrong(format!("prefix `{prefix}`: at most {} codes", trie.levels())));
    }
    let node = trie.find(&codes).ok_or_else(|| bad_data(format!("no item under prefix `{prefix}`")))?;
    let mut text = String::new();
    if codes.len() == trie.levels() {
        for item in trie.items(node) {
            let _ = writeln!(text, "{}\t{}", catalogue.keys.key(*item), catalogue.title(*item));
        }
        return Ok(text);
    }
    let (children, nodes) = trie.children(codes.len(), node);
    let mut rows: Vec<_> =
        children.iter().zip(nodes).map(|(code, node)| (code, trie.items_below(codes.len() + 1, node))).collect();
    rows.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then(a.0.cmp(&b.0)));
    for (code, items) in rows {
        let path: Vec<Code> = codes.iter().copied().chain([code]).collect();
        let titles: Vec<_> = items.iter().take(3).map(|item| catalogue.title(*item)).collect();
        let more = if items.len() > 3 { " …" } else { "" };
        let _ = writeln!(
            text,
            "{:<16} {:>6} items   {}{more}",
            SemanticId::new(&path)?.to_string(),
            items.len(),
            titles.join(" · ")
        );
    }
    Ok(text)
}
