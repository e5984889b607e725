//! The demo's users: tastes, sessions and purchases over a year.
//!
//! A history has five purchases or more, about 9.5 on average, in sessions of a few minutes. Most users are
//! still around in the last weeks, so that new products find buyers.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::law::{CONTINUE, Situation};
use super::products::{Product, Shop, draw, log_normal};
use super::{DAY, DAYS, START, stream};

const SHORTEST: usize = 5;
const LONGEST: usize = 40;
/// Mean of what a history has beyond the shortest.
const MEAN_EXTRA: f64 = 4.5;

/// One purchase by product number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Purchase {
    pub(super) product: usize,
    pub(super) time: i64,
}

/// What a user likes.
pub(super) struct Taste {
    /// Weight of each department, zero for most.
    pub(super) departments: Vec<f64>,
    brands: Vec<usize>,
    tier: f64,
}

impl Taste {
    fn draw(shop: &Shop, rng: &mut ChaCha8Rng) -> Self {
        let mut left: Vec<f64> = shop.departments.iter().map(|d| d.demand).collect();
        let mut departments = vec![0.0; left.len()];
        let mut brands = Vec::new();
        let wanted = draw(&[0.4, 0.4, 0.2], rng).map_or(1, |n| n + 1);
        for rank in 0..wanted {
            let Some(chosen) = draw(&left, rng) else {
                break;
            };
            left[chosen] = 0.0;
            departments[chosen] = log_normal(rng, 0.4) / (rank + 1) as f64;
            let own = &shop.departments[chosen].brands;
            for _ in 0..2 {
                brands.push(own[rng.random_range(0..own.len())]);
            }
        }
        Self { departments, brands, tier: rng.random_range(0.0..3.0) }
    }

    /// How much more than others this user wants a product.
    pub(super) fn factor(&self, product: &Product) -> f64 {
        let brand = if self.brands.contains(&product.brand) { 1.0 } else { 0.0 };
        (brand - 0.45 * (product.tier as f64 - self.tier).abs()).exp()
    }
}

/// The tastes of all users.
pub(super) fn tastes(shop: &Shop, users: usize, seed: u64) -> Vec<Taste> {
    let mut rng = stream(seed, 2);
    (0..users).map(|_| Taste::draw(shop, &mut rng)).collect()
}

/// Purchases of every user, in time order.
pub(super) fn simulate(shop: &Shop, users: usize, seed: u64) -> Vec<Vec<Purchase>> {
    let tastes = tastes(shop, users, seed);
    let one = |(user, taste): (usize, &Taste)| live(shop, taste, &mut stream(seed, 100 + user as u64));
    tastes.iter().enumerate().map(one).collect()
}

/// Exponential with the given mean.
fn exponential(rng: &mut ChaCha8Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.random::<f64>()).ln()
}

fn live(shop: &Shop, taste: &Taste, rng: &mut ChaCha8Rng) -> Vec<Purchase> {
    let mut wanted = SHORTEST;
    while wanted < LONGEST && rng.random_bool(MEAN_EXTRA / (1.0 + MEAN_EXTRA)) {
        wanted += 1;
    }
    let mut sessions = vec![1];
    for _ in 1..wanted {
        if rng.random_bool(CONTINUE) {
            *sessions.last_mut().expect("starts with one") += 1;
        } else {
            sessions.push(1);
        }
    }
    // Most users are still around in the last weeks.
    let year = (DAYS * DAY) as f64;
    let end = year - exponential(rng, 28.0 * DAY as f64).min(0.7 * year);
    let span = sessions.len() as f64 * (3.0 + exponential(rng, 11.0)) * DAY as f64;
    let begin = (end - span).max(0.0);
    let mut opens: Vec<i64> = sessions.iter().map(|_| START + rng.random_range(begin..=end) as i64).collect();
    opens.sort_unstable();

    let mut held = Vec::new();
    let mut bought: Vec<Purchase> = Vec::new();
    let mut clock = 0;
    for (open, count) in opens.into_iter().zip(sessions) {
        clock = open.max(clock + 60);
        for nth in 0..count {
            let situation = Situation { shop, taste, held: &held, time: clock };
            if let Some(product) = situation.buy(nth == 0, rng) {
                held.push(product);
                bought.push(Purchase { product, time: clock });
            }
            clock += rng.random_range(40..900);
        }
    }
    bought
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_directed() {
        let shop = Shop::new(3_000, 1);
        let lives = simulate(&shop, 1_500, 1);
        let name = |p: usize| shop.products[p].path[2].as_str();
        let count = |from: &str, to: &str| {
            let pairs = lives.iter().flat_map(|l| l.windows(2));
            pairs.filter(|w| name(w[0].product) == from && name(w[1].product) == to).count()
        };
        for (from, to) in [("Printers", "Ink & Toner"), ("Shampoo", "Conditioner"), ("Tents", "Sleeping Bags")] {
            let (there, back) = (count(from, to), count(to, from));
            assert!(there > 3 * back.max(1), "{from} -> {to}: {there}, back {back}");
        }
    }

    #[test]
    fn new_products_sell_at_the_end_only() {
        let shop = Shop::new(3_000, 1);
        let lives = simulate(&shop, 1_500, 1);
        let since = START + (DAYS - super::super::NEW_DAYS) * DAY;
        let new = |p: &Purchase| shop.products[p.product].launched >= since;
        assert!(lives.iter().flatten().all(|p| !new(p) || p.time >= since));
        let late = lives.iter().filter(|l| l.last().is_some_and(new)).count();
        assert!(late > 30, "{late} of 1,500 users end with a new product");
    }
}
