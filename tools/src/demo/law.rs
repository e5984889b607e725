//! The law of the demo's purchases.
//!
//! A purchase is one of four kinds; the chances differ between the first purchase of a session and the
//! following ones ([`FIRST_IN_SESSION`], [`LATER_IN_SESSION`]).
//!
//! * complement: one of the last four products is the anchor (the last one mostly); the sub-category follows
//!   the anchor's transitions, less often one bought from already; the product prefers the anchor's line,
//!   then its brand, its style, its color;
//! * similar: another product of the last one's sub-category, preferring its line and kind;
//! * taste: a department of the user, a sub-category by demand and season, a product;
//! * trend: any product by what sells now.
//!
//! Within a sub-category every choice also follows current popularity, favorite brands and price level.

use rand_chacha::ChaCha8Rng;

use super::products::{Product, Shop, draw};
use super::users::Taste;
use super::{DAY, DAYS, START};

/// Chances of complement, similar, taste and trend when a session opens.
const FIRST_IN_SESSION: [f64; 4] = [0.38, 0.10, 0.32, 0.20];
/// The same later in a session.
const LATER_IN_SESSION: [f64; 4] = [0.60, 0.14, 0.14, 0.12];
/// The same without a history.
const NO_HISTORY: [f64; 4] = [0.0, 0.0, 0.65, 0.35];
/// Which of the last products is the anchor, newest first.
const ANCHORS: [f64; 4] = [0.70, 0.19, 0.08, 0.03];
/// Chance that a session goes on after a purchase.
pub(super) const CONTINUE: f64 = 0.5;
/// Weight of a transition into a sub-category for each product that the user has from it.
const HAS_ALREADY: f64 = 0.4;
/// Exponents of popularity within a sub-category and over the whole shop.
const POPULARITY: f64 = 0.6;
const TREND: f64 = 1.15;

/// Popularity of a product at a time: launches are promoted, then age; sub-categories have seasons.
fn popularity(shop: &Shop, product: &Product, time: i64) -> f64 {
    if time < product.launched {
        return 0.0;
    }
    let age = (time - product.launched) as f64 / DAY as f64;
    product.appeal * (0.6 + 0.6 * (-age / 250.0).exp() + 5.0 * (-age / 30.0).exp()) * season(shop, product.sub, time)
}

fn season(shop: &Shop, sub: usize, time: i64) -> f64 {
    let year = (time - START) as f64 / (DAYS * DAY) as f64;
    1.0 + 0.45 * (std::f64::consts::TAU * (year - shop.subs[sub].season)).cos()
}

fn indicator(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

/// How a product of the next sub-category fits the anchor.
fn fit(anchor: &Product, next: &Product) -> f64 {
    let line = indicator(anchor.line == next.line);
    let brand = indicator(anchor.brand == next.brand) * (1.0 - line);
    let style = indicator(anchor.style == next.style) * (1.0 - line);
    let color = indicator(anchor.color == next.color);
    (2.1 * line + 0.9 * brand + 0.7 * style + 0.5 * color).exp()
}

/// How another product of the same sub-category resembles the anchor.
fn likeness(anchor: &Product, other: &Product) -> f64 {
    let line = indicator(anchor.line == other.line);
    let brand = indicator(anchor.brand == other.brand) * (1.0 - line);
    let noun = indicator(anchor.noun == other.noun);
    (1.8 * line + 0.8 * brand + 0.8 * noun).exp()
}

/// Where and with respect to what a product is chosen.
#[derive(Clone, Copy)]
enum Choice<'a> {
    Fit(&'a Product),
    Likeness(&'a Product),
    Free,
}

/// A user's situation before a purchase.
pub(super) struct Situation<'a> {
    pub(super) shop: &'a Shop,
    pub(super) taste: &'a Taste,
    /// Products so far, oldest first.
    pub(super) held: &'a [usize],
    pub(super) time: i64,
}

impl Situation<'_> {
    /// Weights of a sub-category's products, zero for those held already.
    fn choose(&self, sub: usize, choice: Choice) -> Vec<f64> {
        let weigh = |&product: &usize| {
            if self.held.contains(&product) {
                return 0.0;
            }
            let candidate = &self.shop.products[product];
            let link = match choice {
                Choice::Fit(anchor) => fit(anchor, candidate),
                Choice::Likeness(anchor) => likeness(anchor, candidate),
                Choice::Free => 1.0,
            };
            let current = popularity(self.shop, candidate, self.time);
            current.powf(POPULARITY) * link * self.taste.factor(candidate)
        };
        self.shop.subs[sub].products.iter().map(weigh).collect()
    }

    /// Possible anchors with their chances, newest first.
    fn anchors(&self) -> Vec<(&Product, f64)> {
        let newest = self.held.iter().rev().zip(ANCHORS);
        let total: f64 = newest.clone().map(|(_, chance)| chance).sum();
        newest.map(|(&p, chance)| (&self.shop.products[p], chance / total)).collect()
    }

    /// Sub-categories that may follow an anchor, with their chances.
    fn followers(&self, anchor: &Product) -> Vec<(usize, f64)> {
        let weigh = |&(sub, chance): &(usize, f64)| {
            let own = self.held.iter().filter(|&&p| self.shop.products[p].sub == sub);
            let has = if sub == anchor.sub { 0 } else { own.count() };
            (sub, chance * HAS_ALREADY.powf(has as f64))
        };
        normalized(self.shop.subs[anchor.sub].then.iter().map(weigh).collect())
    }

    /// Sub-categories by taste, with their chances.
    fn tastes(&self) -> Vec<(usize, f64)> {
        let mut subs = Vec::new();
        for (department, &wanted) in self.shop.departments.iter().zip(&self.taste.departments) {
            if wanted > 0.0 {
                let weigh = |&s: &usize| (s, self.shop.subs[s].demand * season(self.shop, s, self.time));
                let own = normalized(department.subs.iter().map(weigh).collect());
                subs.extend(own.into_iter().map(|(s, chance)| (s, wanted * chance)));
            }
        }
        normalized(subs)
    }

    /// Weights of all products by what sells now, zero for those held already.
    fn trend(&self) -> Vec<f64> {
        let weigh = |(product, p): (usize, &Product)| {
            if self.held.contains(&product) { 0.0 } else { popularity(self.shop, p, self.time).powf(TREND) }
        };
        self.shop.products.iter().enumerate().map(weigh).collect()
    }

    /// Draws the next product; `None` only when everything launched is held.
    pub(super) fn buy(&self, opens_session: bool, rng: &mut ChaCha8Rng) -> Option<usize> {
        let chances = match (self.held.is_empty(), opens_session) {
            (true, _) => NO_HISTORY,
            (false, true) => FIRST_IN_SESSION,
            (false, false) => LATER_IN_SESSION,
        };
        let (sub, choice) = match draw(&chances, rng)? {
            0 => {
                let anchor = pick(&self.anchors(), rng)?;
                (pick(&self.followers(anchor), rng)?, Choice::Fit(anchor))
            }
            1 => {
                let last = &self.shop.products[*self.held.last()?];
                (last.sub, Choice::Likeness(last))
            }
            2 => (pick(&self.tastes(), rng)?, Choice::Free),
            _ => return draw(&self.trend(), rng),
        };
        draw(&self.choose(sub, choice), rng)
            .map(|n| self.shop.subs[sub].products[n])
            .or_else(|| draw(&self.trend(), rng))
    }

    /// The chance of every product to be bought next, not knowing whether a session opens: the best any model
    /// can know, taste included.
    #[cfg(test)]
    pub(super) fn law(&self) -> Vec<f64> {
        let mut law = vec![0.0; self.shop.products.len()];
        let mut add = |sub: usize, choice: Choice, chance: f64| {
            let weights = self.choose(sub, choice);
            let total: f64 = weights.iter().sum();
            for (&product, weight) in self.shop.subs[sub].products.iter().zip(weights) {
                law[product] += chance * weight / total.max(f64::MIN_POSITIVE);
            }
        };
        let mix: Vec<f64> = FIRST_IN_SESSION
            .iter()
            .zip(LATER_IN_SESSION)
            .map(|(first, later)| (1.0 - CONTINUE) * first + CONTINUE * later)
            .collect();
        for (anchor, chance) in self.anchors() {
            for (sub, next) in self.followers(anchor) {
                add(sub, Choice::Fit(anchor), mix[0] * chance * next);
            }
        }
        if let Some(&last) = self.held.last() {
            let last = &self.shop.products[last];
            add(last.sub, Choice::Likeness(last), mix[1]);
        }
        for (sub, chance) in self.tastes() {
            add(sub, Choice::Free, mix[2] * chance);
        }
        let trend = self.trend();
        let total: f64 = trend.iter().sum();
        for (chance, weight) in law.iter_mut().zip(trend) {
            *chance += mix[3] * weight / total;
        }
        law
    }
}

fn normalized(mut pairs: Vec<(usize, f64)>) -> Vec<(usize, f64)> {
    let total: f64 = pairs.iter().map(|p| p.1).sum();
    for pair in &mut pairs {
        pair.1 /= total.max(f64::MIN_POSITIVE);
    }
    pairs
}

fn pick<T: Copy>(pairs: &[(T, f64)], rng: &mut ChaCha8Rng) -> Option<T> {
    let weights: Vec<f64> = pairs.iter().map(|p| p.1).collect();
    draw(&weights, rng).map(|n| pairs[n].0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::users::{simulate, tastes};

    #[test]
    fn the_law_is_a_distribution_without_held_products() {
        let shop = Shop::new(600, 3);
        let tastes = tastes(&shop, 20, 3);
        let lives = simulate(&shop, 20, 3);
        for (taste, life) in tastes.iter().zip(&lives) {
            let held: Vec<usize> = life.iter().map(|p| p.product).collect();
            let law = Situation { shop: &shop, taste, held: &held, time: START + DAYS * DAY }.law();
            let total: f64 = law.iter().sum();
            assert!(total > 0.9 && total < 1.0 + 1e-9, "{total}");
            assert!(held.iter().all(|&p| law[p] == 0.0));
        }
    }
}
