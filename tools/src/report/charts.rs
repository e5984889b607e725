//! Line charts and heat maps as inline SVG that follows the page's colors.
//!
//! plotters writes fixed colors; each one used here is a mark that is replaced by a CSS class afterwards, so
//! that light and dark pages share one picture.

use anyhow::{Context, anyhow};
use plotters::prelude::*;

/// Series colors of the style sheet, `--c0` and up.
pub(super) const COLORS: usize = 6;
/// Shades of the style sheet, `--h0` (nothing) to `--h7`.
pub(super) const SHADES: usize = 8;

const INK: RGBColor = RGBColor(1, 0, 0);
const RULE: RGBColor = RGBColor(1, 0, 1);

fn series_mark(series: usize) -> RGBColor {
    RGBColor(2, 0, (series % COLORS) as u8)
}

fn shade_mark(shade: usize) -> RGBColor {
    RGBColor(3, 0, shade.min(SHADES - 1) as u8)
}

/// A named line.
pub(super) struct Line {
    /// Number of its color.
    pub(super) color: usize,
    /// Points by rising x.
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over a common x axis.
pub(super) fn line_chart(lines: &[Line], x_label: &str, from_zero: bool) -> anyhow::Result<String> {
    const SIZE: (u32, u32) = (520, 300);
    let all = || lines.iter().flat_map(|l| &l.points);
    let x_end = all().map(|p| p.0).fold(0.0, f64::max).max(1e-9);
    let x_start = all().map(|p| p.0).fold(x_end, f64::min).min(0.0);
    let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let pad = ((high - low) * 0.08).max(high.abs() * 0.02).max(1e-9);
    let bottom = if from_zero { 0.0 } else { low - pad };
    let decimals = if high - bottom < 0.5 { 2 } else { 1 };

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_top(10)
            .margin_right(16)
            .x_label_area_size(46)
            .y_label_area_size(48)
            .build_cartesian_2d(x_start..x_end, bottom..high + pad)
            .map_err(drawing)?;
        let label = ("sans-serif", 17).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RULE.stroke_width(1))
            .axis_style(RULE.stroke_width(1))
            .x_labels(7)
            .y_labels(6)
            .x_desc(x_label)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| format!("{y:.decimals$}"))
            .label_style(label.clone())
            .axis_desc_style(label)
            .draw()
            .map_err(drawing)?;
        for line in lines {
            let style = series_mark(line.color).stroke_width(2);
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style)).map_err(drawing)?;
            // Few points are measurements worth a dot each; many are a trace.
            if line.points.len() <= 40 {
                let dot = |&p: &(f64, f64)| Circle::new(p, 3, series_mark(line.color).filled());
                chart.draw_series(line.points.iter().map(dot)).map_err(drawing)?;
            }
        }
        root.present().map_err(drawing)?;
    }
    themed(&svg)
}

/// Counts as a grid of shaded cells, row by row; darker is more, the lightest shade is zero.
pub(super) fn heat_map(counts: &[u32]) -> anyhow::Result<String> {
    const CELL: i32 = 10;
    const COLUMNS: i32 = 64;
    let length = i32::try_from(counts.len()).context("chart: too many codes")?;
    let columns = length.clamp(1, COLUMNS);
    let rows = (length + columns - 1) / columns;
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let mut svg = String::new();
    {
        let size = (columns * CELL, rows.max(1) * CELL);
        let size = (size.0.unsigned_abs(), size.1.unsigned_abs());
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (code, &count) in (0..).zip(counts) {
            let (x, y) = (code % columns * CELL, code / columns * CELL);
            let cell = [(x, y), (x + CELL - 1, y + CELL - 1)];
            let mark = shade_mark(shade(count, most));
            root.draw(&Rectangle::new(cell, mark.filled())).map_err(drawing)?;
        }
        root.present().map_err(drawing)?;
    }
    themed(&svg)
}

/// Zero has its own shade; the others divide the square root of the share evenly.
fn shade(count: u32, most: u32) -> usize {
    if count == 0 {
        return 0;
    }
    let share = (f64::from(count) / f64::from(most)).sqrt();
    (1..SHADES - 1).rev().find(|&s| share > s as f64 / (SHADES - 1) as f64).map_or(1, |s| s + 1)
}

fn short(x: f64) -> String {
    if x >= 10_000.0 {
        format!("{}k", (x / 1_000.0).round())
    } else if (x - x.round()).abs() < 1e-6 {
        format!("{x:.0}")
    } else {
        format!("{x:.1}")
    }
}

/// plotters' errors borrow the drawing area; only their text can travel.
fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("chart: {error}")
}

/// Replaces the marks by classes and drops the fixed size, keeping the view box.
fn themed(svg: &str) -> anyhow::Result<String> {
    let start = svg.find("<svg").context("chart: plotters wrote no svg element")?;
    let mut out = svg[start..].to_owned();
    let mut replace = |mark: RGBColor, class: &str| {
        let hex = format!("#{:02X}{:02X}{:02X}", mark.0, mark.1, mark.2);
        for (attribute, letter) in [("fill", 'f'), ("stroke", 's')] {
            let from = format!("{attribute}=\"{hex}\"");
            out = out.replace(&from, &format!("class=\"{letter}-{class}\""));
        }
    };
    replace(INK, "ink");
    replace(RULE, "rule");
    for series in 0..COLORS {
        replace(series_mark(series), &format!("c{series}"));
    }
    for shade in 0..SHADES {
        replace(shade_mark(shade), &format!("h{shade}"));
    }
    Ok(out)
}

/// Classes for the marks of series and shades.
pub(super) fn style() -> String {
    let rule = |(letter, n): (char, usize)| {
        format!(
            ".f-{letter}{n} {{ fill: var(--{letter}{n}); }} \
             .s-{letter}{n} {{ stroke: var(--{letter}{n}); }}\n"
        )
    };
    let colors = (0..COLORS).map(|n| ('c', n));
    colors.chain((0..SHADES).map(|n| ('h', n))).map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_chart_has_real_text_and_no_fixed_colors() {
        let lines = [
            Line { color: 0, points: vec![(0.0, 5.0), (1.0, 4.0), (2.0, 3.5)] },
            Line { color: 1, points: vec![(0.0, 4.5), (2.0, 3.0)] },
        ];
        let svg = line_chart(&lines, "epoch", false).unwrap();
        assert!(svg.starts_with("<svg"));
        assert!(svg.contains("<text") && svg.contains("epoch"));
        assert!(svg.contains("class=\"s-c0\"") && svg.contains("class=\"s-c1\""));
        assert!(!svg.contains("=\"#"), "{svg}");
    }

    #[test]
    fn charts_survive_one_point_and_none() {
        let one = [Line { color: 0, points: vec![(3.0, 0.1)] }];
        assert!(line_chart(&one, "step", true).is_ok());
        assert!(line_chart(&[], "step", true).is_ok());
        assert!(heat_map(&[]).is_ok());
    }

    #[test]
    fn a_heat_map_shades_zero_apart() {
        let svg = heat_map(&[0, 1, 9]).unwrap();
        assert!(svg.contains("f-h0") && svg.contains("f-h7"));
        assert_eq!(svg.matches("<rect").count(), 3);
        assert_eq!((shade(0, 9), shade(9, 9), shade(1, 1_000)), (0, 7, 1));
    }
}
