//! Lines with bands of confidence, as inline SVG in the colours of the page.

use std::fmt::Write as _;

/// A named line over the ticks of a chart.
pub(super) struct Line {
    /// Number of its colour, 0 to 5.
    pub(super) color: usize,
    /// Value and half-width of its interval at each tick.
    pub(super) points: Vec<(f64, f64)>,
}

const SIZE: (f64, f64) = (520.0, 300.0);
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 50.0;

/// `lines` over `ticks`, which stand at even distances; the value axis starts at zero.
pub(super) fn chart(lines: &[Line], ticks: &[String], label: &str) -> String {
    let high = lines.iter().flat_map(|line| &line.points).map(|(value, half)| value + half).fold(0.0, f64::max);
    let (step, top) = scale(high);
    let x = |at: usize| {
        let share = if ticks.len() > 1 { at as f64 / (ticks.len() - 1) as f64 } else { 0.5 };
        LEFT + 8.0 + share * (SIZE.0 - LEFT - RIGHT - 16.0)
    };
    let y = |value: f64| TOP + (1.0 - value / top) * (SIZE.1 - TOP - BOTTOM);
    let mut svg = format!("<svg viewBox=\"0 0 {} {}\" role=\"img\" font-size=\"13\">", SIZE.0, SIZE.1);
    let rules = (top / step).round() as usize;
    for rule in 0..=rules {
        let value = rule as f64 * step;
        let at = y(value);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"s-rule\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" class=\"f-ink\">{value:.2}</text>",
            SIZE.0 - RIGHT,
            LEFT - 6.0,
            at + 4.5
        );
    }
    for (at, tick) in ticks.iter().enumerate() {
        let (x, y) = (x(at), SIZE.1 - BOTTOM + 18.0);
        let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" class=\"f-ink\">{tick}</text>");
    }
    let (middle, bottom) = (LEFT + (SIZE.0 - LEFT - RIGHT) / 2.0, SIZE.1 - 8.0);
    let _ =
        write!(svg, "<text x=\"{middle:.1}\" y=\"{bottom:.1}\" text-anchor=\"middle\" class=\"f-ink\">{label}</text>");
    for line in lines {
        let edge = |(at, (value, half)): (usize, &(f64, f64)), sign: f64| {
            format!("{:.1},{:.1}", x(at), y((value + sign * half).clamp(0.0, top)))
        };
        let upper = line.points.iter().enumerate().map(|point| edge(point, 1.0));
        let lower = line.points.iter().enumerate().rev().map(|point| edge(point, -1.0));
        let band: Vec<String> = upper.chain(lower).collect();
        let path: Vec<String> = line.points.iter().enumerate().map(|point| edge(point, 0.0)).collect();
        let color = line.color;
        let _ = write!(svg, "<polygon points=\"{}\" class=\"f-c{color}\" fill-opacity=\"0.13\"/>", band.join(" "));
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke-width=\"2\" class=\"s-c{color}\"/>",
            path.join(" ")
        );
        for point in &path {
            let (x, y) = point.split_once(',').unwrap_or((point, point));
            let _ = write!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" class=\"f-c{color}\"/>");
        }
    }
    svg + "</svg>"
}

/// Distance of the rules and the end of an axis that shows `high`.
fn scale(high: f64) -> (f64, f64) {
    let steps = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25];
    let step = steps.into_iter().find(|step| high / step <= 6.0).unwrap_or(0.25);
    (step, step * (high / step).ceil().max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_stay_inside_and_one_point_is_enough() {
        let line = Line { color: 2, points: vec![(0.1, 0.2), (0.3, 0.05)] };
        let svg = chart(&[line], &["0".into(), "0.1".into()], "share");
        assert!(svg.contains("s-c2") && svg.matches("<circle").count() == 2 && !svg.contains("NaN"));
        assert!(!chart(&[Line { color: 0, points: vec![(0.0, 0.0)] }], &["5".into()], "k").contains("NaN"));
        assert_eq!(scale(0.35), (0.1, 0.4));
        assert_eq!(scale(0.0), (0.01, 0.01));
    }
}
