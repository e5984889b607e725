//! A page about the IDs of a catalogue: use of codes, perplexity, collisions, a map of the vectors, the tree.
//!
//! One offline file; every text from the data is data to the page, never markup.

use crate::catalogue::{Catalogue, require_empty};
use crate::error::cannot_create;
use crate::report::grouped;
use anyhow::Result;
use rqvae::{ItemIdx, SidStats, Vectors};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

const TEMPLATE: &str = include_str!("../page/inspect.html");
/// Points of the map and items of the tree: a page should open at once.
const POINTS: usize = 4000;
const ITEMS: usize = 50_000;
const WIDTH: usize = 960;

/// Writes `index.html` into the new directory `out`.
///
/// # Errors
/// Cannot create.
pub fn write(catalogue: &Catalogue, out: &Path) -> Result<()> {
    require_empty(out)?;
    std::fs::create_dir_all(out).map_err(|e| cannot_create(out, e))?;
    Ok(rqvae::write_atomic(&out.join("index.html"), render(catalogue)?.as_bytes())?)
}

/// The page.
pub fn render(catalogue: &Catalogue) -> Result<String> {
    let stats = SidStats::of_table(&catalogue.sids);
    let (levels, origin) = (stats.levels, &catalogue.origin);
    let lead = format!(
        "{} items, {} unique prefixes ({:.1} %), largest group {}; {}, relative error {:.3}.",
        grouped(stats.items),
        grouped(stats.unique_prefixes),
        100.0 * stats.unique_fraction,
        stats.max_group,
        origin.method,
        origin.relative_error
    );
    let mut items: Vec<ItemIdx> =
        (0..stats.items as u32).map(ItemIdx).filter(|item| catalogue.is_live(*item)).collect();
    items.sort_by_key(|item| catalogue.sids.sid(*item));
    let cut = if items.len() > ITEMS { format!("The first {ITEMS} items are shown.") } else { String::new() };
    items.truncate(ITEMS);
    let rows: Vec<_> = items.iter().map(|item| (catalogue.sids.codes(*item), catalogue.title(*item))).collect();
    let counts: Vec<Vec<u32>> = (0..levels).map(|level| counts(catalogue, level)).collect();
    let page = [
        ("{{lead}}", lead),
        ("{{heat}}", heat(&counts)),
        ("{{perplexity}}", perplexity(&stats)),
        ("{{collisions}}", collisions(catalogue, levels)),
        ("{{resolved}}", resolved(catalogue, &stats)),
        ("{{map}}", map(catalogue)),
        ("{{cut}}", cut),
        // Last, so that no title is taken for a place; `<` would end the script.
        ("{{items}}", serde_json::to_string(&rows)?.replace('<', "\\u003c")),
    ];
    Ok(page.iter().fold(TEMPLATE.to_string(), |text, (place, value)| text.replacen(place, value, 1)))
}

/// Items per code of `level`.
fn counts(catalogue: &Catalogue, level: usize) -> Vec<u32> {
    let mut counts = vec![0; catalogue.sids.spec().codes_at(level) as usize];
    for item in 0..catalogue.sids.items() {
        counts[usize::from(catalogue.sids.codes(ItemIdx(item as u32))[level])] += 1;
    }
    counts
}

fn heat(counts: &[Vec<u32>]) -> String {
    const COLUMNS: usize = 64;
    let side = WIDTH / COLUMNS;
    let (mut body, mut y) = (String::new(), 0);
    for (level, counts) in counts.iter().enumerate() {
        let _ = write!(body, "<text x=\"0\" y=\"{}\">level {level}</text>", y + 14);
        y += 20;
        let most = f64::from(counts.iter().copied().max().unwrap_or(1).max(1));
        for (code, &count) in counts.iter().enumerate() {
            let (x, y) = (code % COLUMNS * side, y + code / COLUMNS * side);
            let shade = 0.12 + 0.88 * (f64::from(count) / most).sqrt();
            let look = if count == 0 {
                "class=\"none\"".into()
            } else {
                format!("class=\"cell\" fill-opacity=\"{shade:.2}\"")
            };
            let size = side - 1;
            let _ = write!(
                body,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{size}\" height=\"{size}\" {look}><title>{code}: {count}</title></rect>"
            );
        }
        y += counts.len().div_ceil(COLUMNS) * side + 10;
    }
    svg(WIDTH, y, "items per code", &body)
}

fn perplexity(stats: &SidStats) -> String {
    let rows = stats.perplexity.iter().zip(&stats.codebook_sizes).enumerate();
    let rows: Vec<(String, f64, String)> = rows
        .map(|(level, (p, size))| (format!("level {level}"), p / f64::from(*size), format!("{p:.0} of {size}")))
        .collect();
    bars(&rows, "perplexity per level")
}

fn collisions(catalogue: &Catalogue, levels: usize) -> String {
    let mut groups: BTreeMap<&[u16], usize> = BTreeMap::new();
    for item in 0..catalogue.sids.items() {
        *groups.entry(&catalogue.sids.codes(ItemIdx(item as u32))[..levels]).or_default() += 1;
    }
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    groups.values().for_each(|&size| *sizes.entry(size).or_default() += 1);
    let most = sizes.values().copied().max().unwrap_or(1) as f64;
    let share = |groups: usize| (1.0 + groups as f64).ln() / (1.0 + most).ln();
    let name = |size: usize| if size == 1 { "alone".to_string() } else { format!("{size} items") };
    let rows: Vec<(String, f64, String)> =
        sizes.iter().map(|(&size, &groups)| (name(size), share(groups), grouped(groups))).collect();
    bars(&rows, "groups of items with equal codes")
}

/// Unique codes and the largest group, as the quantiser gave them and after collisions were dealt with.
fn resolved(catalogue: &Catalogue, stats: &SidStats) -> String {
    let Some(found) = &catalogue.origin.collisions else {
        return "<p>This catalogue does not say what was done about collisions.</p>".to_string();
    };
    let items = stats.items.max(1) as f64;
    let unique =
        |count: usize| (count as f64 / items, format!("{} ({:.1} %)", grouped(count), 100.0 * count as f64 / items));
    let largest = found.max_group_before.max(stats.max_group).max(1) as f64;
    let group = |size: usize| (size as f64 / largest, format!("{size} items"));
    let rows = [
        ("unique before", unique(found.unique_prefixes_before)),
        ("unique after", unique(stats.unique_prefixes)),
        ("largest before", group(found.max_group_before)),
        ("largest after", group(stats.max_group)),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(name, (share, figure))| (name.to_string(), share, figure)).collect();
    let suffix = match stats.suffix_size {
        0 => "Items with equal codes share one ID.".to_string(),
        size => format!("A suffix of {size} values numbers items with equal codes."),
    };
    let policy = &found.policy;
    format!(
        "<p>{policy}: {} items moved to another last code. {suffix}</p>{}",
        grouped(found.moved),
        bars(&rows, "before and after")
    )
}

/// Rows of name, share of the width in [0, 1] and figure.
fn bars(rows: &[(String, f64, String)], what: &str) -> String {
    const ROW: usize = 22;
    let mut body = String::new();
    for (at, (name, share, figure)) in rows.iter().enumerate() {
        let y = at * ROW;
        let width = (100.0 * share).max(1.0);
        let _ = write!(
            body,
            "<text x=\"92\" y=\"{}\" text-anchor=\"end\">{name}</text><rect class=\"bar\" x=\"98\" y=\"{}\" \
             width=\"{width:.1}\" height=\"14\"/><text x=\"{:.1}\" y=\"{}\">{figure}</text>",
            y + 15,
            y + 4,
            104.0 + width,
            y + 15
        );
    }
    svg(320, rows.len() * ROW + 4, what, &body)
}

fn map(catalogue: &Catalogue) -> String {
    const HEIGHT: usize = 520;
    let ties = catalogue.keys.tie_hash();
    let mut drawn: Vec<usize> = (0..catalogue.content.rows()).collect();
    drawn.sort_by_key(|&row| ties[row]);
    drawn.truncate(POINTS);
    let points = directions(&catalogue.content, &drawn);
    let bound = |at: usize| {
        let column = points.iter().map(|p| p[at]);
        let (low, high) = column.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        (low, (high - low).max(f64::MIN_POSITIVE))
    };
    let (x, y) = (bound(0), bound(1));
    let mut body = String::new();
    for (row, point) in drawn.iter().zip(&points) {
        let item = ItemIdx(*row as u32);
        let code = catalogue.sids.codes(item)[0];
        // Steps by the golden angle keep the colors of neighbouring codes apart.
        let hue = f64::from(code) * 137.508 % 360.0;
        let place =
            |(low, range): (f64, f64), value: f64, size: usize| 6.0 + (value - low) / range * (size as f64 - 12.0);
        let (cx, cy) = (place(x, point[0], WIDTH), place(y, point[1], HEIGHT));
        let _ = write!(
            body,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"hsl({hue:.0} 65% 50% / .75)\"><title>{}: {}</title></circle>",
            catalogue.sids.sid(item),
            escape(catalogue.title(item))
        );
    }
    svg(WIDTH, HEIGHT, "map of the content vectors", &body)
}

/// Places of `rows` along the two main directions of their vectors, found by power iteration.
fn directions(content: &Vectors, rows: &[usize]) -> Vec<[f64; 2]> {
    const ITERATIONS: usize = 40;
    let dim = content.dim;
    let mut mean = vec![0f64; dim];
    for &row in rows {
        mean.iter_mut().zip(content.row(row)).for_each(|(mean, &x)| *mean += f64::from(x) / rows.len() as f64);
    }
    let centered = |row: usize| content.row(row).iter().zip(&mean).map(|(&x, mean)| f64::from(x) - mean);
    let mut found: Vec<Vec<f64>> = Vec::new();
    for number in 0..2 {
        let mut direction: Vec<f64> = (0..dim).map(|d| 1.0 / (1.0 + ((d * 7 + number * 3) % 11) as f64)).collect();
        for _ in 0..ITERATIONS {
            let mut next = vec![0f64; dim];
            for &row in rows {
                let dot: f64 = centered(row).zip(&direction).map(|(x, d)| x * d).sum();
                next.iter_mut().zip(centered(row)).for_each(|(next, x)| *next += dot * x);
            }
            for other in &found {
                let dot: f64 = next.iter().zip(other).map(|(a, b)| a * b).sum();
                next.iter_mut().zip(other).for_each(|(next, x)| *next -= dot * x);
            }
            let norm = next.iter().map(|x| x * x).sum::<f64>().sqrt();
            if norm < f64::MIN_POSITIVE {
                break;
            }
            direction = next.into_iter().map(|x| x / norm).collect();
        }
        found.push(direction);
    }
    let place = |row: usize, number: usize| centered(row).zip(&found[number]).map(|(x, d)| x * d).sum();
    rows.iter().map(|&row| [place(row, 0), place(row, 1)]).collect()
}

/// Text as markup that says it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace("{{", "{&#8203;{")
}

fn svg(width: usize, height: usize, label: &str, body: &str) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">{body}</svg>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_text_and_no_places() {
        assert_eq!(escape("<b> & {{items}}"), "&lt;b&gt; &amp; {&#8203;{items}}");
    }

    #[test]
    fn the_first_direction_is_the_longest() {
        let content = Vectors::new(3, vec![-5.0, 0.1, 0.0, 5.0, -0.1, 0.0, 0.0, 1.0, 0.0, 0.0, -1.0, 0.0]).unwrap();
        let points = directions(&content, &[0, 1, 2, 3]);
        assert!((points[0][0].abs() - 5.0).abs() < 0.1 && points[2][0].abs() < 0.2, "{points:?}");
        assert!((points[2][1].abs() - 1.0).abs() < 0.1 && points[0][1].abs() < 0.2, "{points:?}");
        let zeros = Vectors::new(2, vec![0.0; 4]).unwrap();
        assert_eq!(directions(&zeros, &[0, 1]), [[0.0; 2]; 2]);
    }
}
