//! The demo's shop: departments, sub-categories, product lines and products.
//!
//! Words and transitions stand in `vocabulary.toml`. A brand covers some categories of its department, a line
//! (brand and line name, with a style and a price level) most of what the brand covers, and has one to four
//! products in a sub-category, which differ in kind, size and color.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::{DAY, DAYS, NEW_DAYS, START, stream};

const VOCABULARY: &str = include_str!("vocabulary.toml");
/// Share of products launched in the last weeks.
const NEW_SHARE: f64 = 0.05;
/// Share of products launched within the year before the last weeks.
const RECENT_SHARE: f64 = 0.25;
/// Products per department below which a department is left out.
const ITEMS_PER_DEPARTMENT: usize = 240;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vocabulary {
    department: Vec<DepartmentWords>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DepartmentWords {
    name: String,
    colors: Vec<String>,
    styles: Vec<String>,
    brands: Vec<String>,
    sub: Vec<SubWords>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubWords {
    category: String,
    name: String,
    nouns: Vec<String>,
    specs: Vec<String>,
    price: [f64; 2],
    then: Vec<String>,
    features: Vec<String>,
    finish: Option<Vec<String>>,
}

/// A product with what the law of purchases looks at.
pub(super) struct Product {
    pub(super) sub: usize,
    pub(super) brand: usize,
    pub(super) line: usize,
    pub(super) style: usize,
    /// Price level, 0 to 3.
    pub(super) tier: usize,
    pub(super) noun: usize,
    pub(super) color: usize,
    /// Popularity in the middle of a product's life; factors of line and sub-category included.
    pub(super) appeal: f64,
    pub(super) launched: i64,
    pub(super) title: String,
    pub(super) brand_name: String,
    pub(super) path: Vec<String>,
    pub(super) description: String,
    pub(super) price: f32,
}

/// A sub-category.
pub(super) struct Sub {
    /// Where people go next: sub-category and probability.
    pub(super) then: Vec<(usize, f64)>,
    pub(super) products: Vec<usize>,
    /// Demand within the department.
    pub(super) demand: f64,
    /// Position of the yearly high, as a fraction of the year.
    pub(super) season: f64,
}

/// A department.
pub(super) struct Department {
    pub(super) subs: Vec<usize>,
    pub(super) brands: Vec<usize>,
    pub(super) demand: f64,
}

/// Everything that is for sale.
pub(super) struct Shop {
    pub(super) departments: Vec<Department>,
    pub(super) subs: Vec<Sub>,
    pub(super) products: Vec<Product>,
}

/// A product line, inside its department.
struct Line {
    brand: usize,
    brand_name: String,
    name: String,
    style: usize,
    tier: usize,
    strength: f64,
    /// Sub-categories, counted within the department.
    covers: Vec<bool>,
}

/// exp of a normal variable with standard deviation `sigma`.
pub(super) fn log_normal(rng: &mut ChaCha8Rng, sigma: f64) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    (sigma * normal).exp()
}

/// An index with probability in proportion to its weight; `None` if all are zero.
pub(super) fn draw(weights: &[f64], rng: &mut ChaCha8Rng) -> Option<usize> {
    let total: f64 = weights.iter().sum();
    let mut left = rng.random::<f64>() * total;
    let mut last = None;
    for (index, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            last = Some(index);
            if left < weight {
                break;
            }
            left -= weight;
        }
    }
    last
}

impl Shop {
    /// Makes a shop of exactly `items` products.
    pub(super) fn new(items: usize, seed: u64) -> Self {
        let mut rng = stream(seed, 1);
        let words: Vocabulary = toml::from_str(VOCABULARY).expect("compiled in and parsed by a test");
        let kept = (items / ITEMS_PER_DEPARTMENT).clamp(1, words.department.len());
        let mut shop = Self { departments: Vec::new(), subs: Vec::new(), products: Vec::new() };
        let mut brands = 0;
        let mut lines = 0;
        for (number, words) in words.department[..kept].iter().enumerate() {
            let share = items * (number + 1) / kept - items * number / kept;
            let own = make_lines(words, brands, &mut rng);
            shop.add_department(words, &own, lines, share, &mut rng);
            brands += words.brands.len();
            lines += own.len();
        }
        shop
    }

    fn add_department(
        &mut self,
        words: &DepartmentWords,
        lines: &[Line],
        first_line: usize,
        share: usize,
        rng: &mut ChaCha8Rng,
    ) {
        let first_sub = self.subs.len();
        let position = |name: &str| {
            let found = words.sub.iter().position(|s| s.name == name);
            first_sub + found.expect("transitions stay in the department, as a test checks")
        };
        // Whole numbers, so that shares add up.
        let sizes: Vec<usize> = words.sub.iter().map(|_| rng.random_range(60..=140)).collect();
        let total: usize = sizes.iter().sum();
        let mut titles = BTreeSet::new();
        let (mut before, mut sum) = (0, 0);
        for (local, sub) in words.sub.iter().enumerate() {
            sum += sizes[local];
            let count = share * sum / total - before;
            before += count;
            let then = transitions(&sub.then, position);
            let demand = log_normal(rng, 0.5);
            let first = self.products.len();
            let covering: Vec<usize> = (0..lines.len()).filter(|&l| lines[l].covers[local]).collect();
            for _ in 0..count {
                let line = *covering.choose(rng).expect("every sub-category has lines");
                let mut product = make_product(words, sub, &lines[line], &mut titles, rng);
                product.sub = first_sub + local;
                product.line = first_line + line;
                product.appeal *= demand;
                self.products.push(product);
            }
            self.subs.push(Sub {
                then,
                products: (first..self.products.len()).collect(),
                demand,
                season: rng.random(),
            });
        }
        let mut brands: Vec<usize> = lines.iter().map(|l| l.brand).collect();
        brands.dedup();
        self.departments.push(Department {
            subs: (first_sub..self.subs.len()).collect(),
            brands,
            demand: log_normal(rng, 0.35),
        });
    }
}

/// Parses "name*weight" pairs into probabilities.
fn transitions(then: &[String], position: impl Fn(&str) -> usize) -> Vec<(usize, f64)> {
    let pairs: Vec<(usize, f64)> = then
        .iter()
        .map(|pair| {
            let (name, weight) = pair.split_once('*').unwrap_or((pair, "1"));
            (position(name), weight.parse().unwrap_or(1.0))
        })
        .collect();
    let total: f64 = pairs.iter().map(|p| p.1).sum();
    pairs.into_iter().map(|(sub, w)| (sub, w / total)).collect()
}

fn make_lines(words: &DepartmentWords, first_brand: usize, rng: &mut ChaCha8Rng) -> Vec<Line> {
    let mut categories: Vec<&str> = words.sub.iter().map(|s| s.category.as_str()).collect();
    categories.dedup();
    let mut lines = Vec::new();
    for (number, brand) in words.brands.iter().enumerate() {
        let (brand_name, names) = brand.split_once(": ").unwrap_or((brand, "One"));
        // The first two brands of a department sell everything, so no sub-category stays empty.
        let sells: Vec<bool> = categories.iter().map(|_| number < 2 || rng.random_bool(0.6)).collect();
        let fame = log_normal(rng, 0.5);
        for (nth, name) in names.split(", ").enumerate() {
            let covers = words.sub.iter().map(|sub| {
                let category = categories.iter().position(|c| *c == sub.category);
                let sold = category.is_some_and(|c| sells[c]);
                sold && ((number < 2 && nth == 0) || rng.random_bool(0.75))
            });
            lines.push(Line {
                brand: first_brand + number,
                brand_name: brand_name.to_owned(),
                name: name.to_owned(),
                covers: covers.collect(),
                style: rng.random_range(0..words.styles.len()),
                tier: rng.random_range(0..4),
                strength: fame * log_normal(rng, 0.4),
            });
        }
    }
    lines
}

/// A product of a line in a sub-category; the caller fills in the global numbers.
fn make_product(
    words: &DepartmentWords,
    sub: &SubWords,
    line: &Line,
    titles: &mut BTreeSet<String>,
    rng: &mut ChaCha8Rng,
) -> Product {
    let colors = sub.finish.as_ref().unwrap_or(&words.colors);
    // Half of a line's products in a sub-category are of its main kind.
    let main = (line.name.len() + sub.name.len()) % sub.nouns.len();
    let full = format!("{} {}", line.brand_name, line.name);
    let mut tries = 0;
    let (noun, spec, color, title) = loop {
        tries += 1;
        let noun = if rng.random_bool(0.5) { main } else { rng.random_range(0..sub.nouns.len()) };
        let (kind, own) = sub.nouns[noun].split_once(": ").unwrap_or((&sub.nouns[noun], ""));
        let sizes: Vec<&str> =
            if own.is_empty() { sub.specs.iter().map(String::as_str).collect() } else { own.split(", ").collect() };
        let spec = sizes[rng.random_range(0..sizes.len())];
        let color = rng.random_range(0..colors.len());
        let mut title = format!("{full} {spec} {kind}, {}", colors[color]);
        if tries > 12 {
            title = format!("{title}, Series {}", tries / 12 + 1);
        }
        if titles.insert(title.clone()) {
            break (noun, spec, color, title);
        }
    };
    let features: Vec<&str> = sub.features.choose_multiple(rng, 2).map(String::as_str).collect();
    let description = format!(
        "{}. Part of the {full} line: {}. Comes in {}, {spec}.",
        features.join(". "),
        words.styles[line.style],
        colors[color],
    );
    let [low, high] = sub.price;
    let level = (line.tier as f64 + rng.random::<f64>()) / 4.0;
    let price = (low * (high / low).powf(level)).round() - 0.01;
    Product {
        sub: 0,
        brand: line.brand,
        line: 0,
        style: line.style,
        tier: line.tier,
        noun,
        color,
        appeal: line.strength * log_normal(rng, 0.8),
        launched: launch(rng),
        title,
        brand_name: line.brand_name.clone(),
        path: vec![words.name.clone(), sub.category.clone(), sub.name.clone()],
        description,
        price: price as f32,
    }
}

/// Launch time: most before the year, some during it, a few in the last weeks.
fn launch(rng: &mut ChaCha8Rng) -> i64 {
    let kind: f64 = rng.random();
    let first_new = (DAYS - NEW_DAYS) * DAY;
    START
        + if kind < NEW_SHARE {
            rng.random_range(first_new..DAYS * DAY - 7 * DAY)
        } else if kind < NEW_SHARE + RECENT_SHARE {
            rng.random_range(0..first_new)
        } else {
            -rng.random_range(30 * DAY..900 * DAY)
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabulary_parses_and_transitions_name_their_own_department() {
        let words: Vocabulary = toml::from_str(VOCABULARY).unwrap();
        assert_eq!(words.department.len(), 8);
        for department in &words.department {
            let names: BTreeSet<_> = department.sub.iter().map(|s| &s.name).collect();
            assert_eq!(names.len(), department.sub.len());
            for sub in &department.sub {
                assert!(sub.price[0] < sub.price[1]);
                for then in &sub.then {
                    let (name, weight) = then.split_once('*').unwrap();
                    assert!(names.contains(&name.to_owned()), "{}: {name}", sub.name);
                    assert!(weight.parse::<f64>().unwrap() > 0.0);
                }
            }
        }
    }

    #[test]
    fn transitions_are_probabilities() {
        let shop = Shop::new(3_000, 5);
        assert_eq!(shop.departments.len(), 8);
        for sub in &shop.subs {
            let total: f64 = sub.then.iter().map(|t| t.1).sum();
            assert!((total - 1.0).abs() < 1e-12);
            assert!(!sub.products.is_empty());
        }
    }

    #[test]
    fn draw_follows_the_weights_and_skips_zeros() {
        let mut rng = stream(1, 0);
        let mut counts = [0; 4];
        for _ in 0..4_000 {
            counts[draw(&[0.0, 1.0, 3.0, 0.0], &mut rng).unwrap()] += 1;
        }
        assert_eq!(counts[0] + counts[3], 0);
        assert!((900..1_100).contains(&counts[1]), "{counts:?}");
        assert_eq!(draw(&[0.0, 0.0], &mut rng), None);
    }
}
