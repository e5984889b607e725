//! Made-up numbers for tests of the report.

use super::{
    ColdStartRow, Curve, CurvePoint, DemoReport, Extras, MetricSet, MetricsRow, MetricsTable, PrefixExample, Sample,
    SampleItem, SampleList, TokenizerReport,
};
use crate::demo::{DemoConfig, DemoItem, generate};

/// A report that looks like one of the demo's.
pub(super) fn made_up() -> (DemoReport, Extras) {
    let scale =
        |r: f64| MetricSet { recall_5: 0.62 * r, ndcg_5: 0.41 * r, recall_10: r, ndcg_10: 0.53 * r, mrr_10: 0.39 * r };
    let models =
        [("popular", 0.0441), ("itemknn", 0.1355), ("content-knn", 0.1325), ("sasrec", 0.1712), ("rqt", 0.1986)];
    let rows = |factor: f64| {
        let row = |(n, &(model, recall)): (usize, &(&str, f64))| MetricsRow {
            model: model.to_owned(),
            metrics: scale(recall * factor),
            ci95: Some(scale(0.009)),
            coverage_10: Some(0.01 + 0.18 * n as f64),
            users_per_second: Some(900.0),
        };
        models.iter().enumerate().map(row).collect()
    };
    let tables = vec![
        MetricsTable {
            title: "Seen items excluded".to_owned(),
            seen: "exclude".to_owned(),
            users: 6_000,
            rows: rows(1.0),
        },
        MetricsTable {
            title: "Seen items included".to_owned(),
            seen: "include".to_owned(),
            users: 6_000,
            rows: rows(0.8),
        },
    ];
    let cold = |method: &str, r: f64, share: f64| ColdStartRow {
        method: method.to_owned(),
        epsilon: None,
        k: 10,
        recall_unseen: r,
        ndcg_unseen: 0.5 * r,
        recall_all: 0.14,
        ndcg_all: 0.08,
        recall_warm: 0.15,
        unseen_share: share,
    };
    let report = DemoReport {
        items: 3_000,
        users: 6_000,
        interactions: 56_656,
        tokenizer: TokenizerReport {
            items: 3_000,
            levels: 3,
            codebook_sizes: vec![256; 3],
            usage: vec![1.0, 0.996, 0.984],
            perplexity: vec![231.0, 224.0, 209.0],
            unique_prefixes: 2_911,
            unique_fraction: 0.9703,
            max_group: 4,
            suffix_size: 4,
            reconstruction_mse: 0.0008,
            relative_error: 0.183,
            method: "rqvae".to_owned(),
            encoder: "lsa-128".to_owned(),
            seed: 42,
            fit_seconds: 14.2,
            encode_items_per_second: 81_000.0,
        },
        models: models.iter().map(|(name, r)| ((*name).to_owned(), scale(*r))).collect(),
        cold_start: vec![cold("content-knn", 0.071, 0.05), cold("rqt", 0.094, 0.03), cold("popular", 0.0, 0.0)],
        timing: [
            ("data", 2.1),
            ("embed", 1.3),
            ("semantic IDs", 14.2),
            ("train rqt", 121.0),
            ("train sasrec", 48.0),
            ("evaluate", 21.0),
            ("cold start", 6.5),
        ]
        .map(|(name, seconds)| (name.to_owned(), seconds))
        .into_iter()
        .collect(),
    };
    let extras = Extras {
        dataset: "the demo catalogue".to_owned(),
        command: "sidrec demo --seed 42".to_owned(),
        seeds: vec![42],
        highlight: "rqt".to_owned(),
        tables,
        curves: vec![curve("rqt", 24, 0.2), curve("sasrec", 30, 0.17)],
        code_counts: (0..3).map(code_counts).collect(),
        ..shop_extras()
    };
    (report, extras)
}

fn curve(model: &str, epochs: u32, best: f64) -> Curve {
    let point = |n: u32| {
        let epoch = f64::from(n) / 5.0;
        CurvePoint {
            step: u64::from(n) * 9,
            epoch,
            loss: Some(4.1 + 4.2 * (-epoch / 6.0).exp() + 0.08 * f64::from(n * 37 % 11) / 11.0 + (0.2 - best) * 20.0),
            val_recall_10: n.is_multiple_of(5).then(|| best * (1.0 - (-epoch / 5.0).exp())),
        }
    };
    Curve { model: model.to_owned(), points: (1..=epochs * 5).map(point).collect() }
}

fn code_counts(level: u32) -> Vec<u32> {
    (0..256)
        .map(|c: u32| (c.wrapping_mul(2_654_435_761 + level * 98) >> 7) % 29)
        .map(|v| if v == 3 { 0 } else { v })
        .collect()
}

/// Samples and prefixes with titles of the generated shop.
fn shop_extras() -> Extras {
    let shop = generate(&DemoConfig { items: 500, users: 40, seed: 1 }).items;
    let shown = |i: &DemoItem, n: usize| SampleItem {
        title: i.title.clone(),
        category: i.categories[1..].join(" › "),
        sid: format!("{},{},{},0", n * 7 % 256, n * 31 % 256, n * 13 % 256),
        score: None,
        is_target: false,
    };
    let list = |user: usize, offset: usize, model: &str, target: Option<usize>| SampleList {
        model: model.to_owned(),
        items: (0..10)
            .map(|n| SampleItem {
                score: Some(-2.1 - 0.33 * n as f64),
                is_target: target == Some(n),
                ..shown(&shop[(user * 31 + offset + n) % shop.len()], n + offset)
            })
            .collect(),
    };
    let sample = |user: usize| Sample {
        user: format!("U{:05}", user * 733 + 12),
        history: (0..6 + user % 3).map(|n| shown(&shop[user * 17 + n], n)).collect(),
        history_omitted: user % 2 * 7,
        target: shown(&shop[user * 31 + 2], 2),
        lists: vec![list(user, 0, "rqt", user.is_multiple_of(2).then_some(2)), list(user, 100, "itemknn", None)],
    };
    Extras {
        prefixes: (0..6)
            .map(|n| PrefixExample {
                prefix: (n * 40).to_string(),
                items: 9 + n,
                titles: shop[n * 5..n * 5 + 4].iter().map(|i| i.title.clone()).collect(),
            })
            .collect(),
        samples: (0..5).map(sample).collect(),
        notes: [
            "Leave one out: a user's last item is the test target, the one before it validation, the rest training.",
            "Rankings go over the full catalogue; items of the history are left out, inside the search and for every baseline alike.",
            "Histories are capped at the newest 20 items. Ties are decided by a hash of the item id.",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Extras::default()
    }
}

/// Writes the page to `$SIDREC_REPORT_PAGE` for a look in a browser.
#[test]
#[ignore = "writes a file to look at"]
fn page_to_look_at() {
    let (report, extras) = made_up();
    let path = std::env::var("SIDREC_REPORT_PAGE").unwrap();
    std::fs::write(path, super::render_html(&report, &extras).unwrap()).unwrap();
    println!("{}", super::metrics_table(&extras.tables[0], "rqt"));
    println!("{}", super::cold_start_table(&report.cold_start));
    println!("{}", super::samples_table(&extras.samples[..1], 120));
}
