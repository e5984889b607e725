use super::*;
use crate::catalogue::Catalogue;
use crate::demo::vectors::fill;
use crate::error::exit_code;
use crate::jobs::build_sids::{Content, build as build_in_memory};
use crate::table::{SidsFile, read_items, read_sids};
use rqvae::{ItemIdx, Method};
use std::fmt::Write;

const ITEMS: usize = 700;

/// A table in which some items are twice, some alike, and some rows unusable; of vectors or of texts.
fn table(dir: &Path, vectors: bool) -> PathBuf {
    let path = dir.join(if vectors { "vectors.jsonl" } else { "texts.jsonl" });
    let mut text = String::new();
    for at in 0..ITEMS {
        // Three items in a row have the same content, and so the same codes.
        let mut vector = [0.0; 6];
        fill(&mut vector, (at / 3) as u64, 5);
        let row = |id: String, width: usize| {
            if vectors {
                serde_json::json!({ "item_id": id, "embedding": vector[..width] })
            } else {
                serde_json::json!({ "item_id": id, "title": format!("thing {} of {}", at / 3, at / 30) })
            }
        };
        let _ = writeln!(text, "{}", row(format!("k{at}"), 6));
        if at % 100 == 7 {
            let _ = writeln!(text, "{}", row(format!("k{at}"), 6));
        }
        if at % 300 == 5 {
            let id = if vectors { format!("bad{at}") } else { String::new() };
            let _ = writeln!(text, "{}", row(id, 2));
        }
    }
    fs::write(&path, text).unwrap();
    path
}

fn quantizer() -> QuantizerConfig {
    QuantizerConfig { method: Method::ResidualKmeans, codebook_size: 8, levels: 2, ..QuantizerConfig::default() }
}

fn job<'a>(items: &'a Path, quantizer: &'a QuantizerConfig, out: &'a Path) -> StreamJob<'a> {
    let options = ReadOptions { max_reject_fraction: 0.01, ..ReadOptions::default() };
    StreamJob {
        items,
        options,
        encoder: None,
        quantizer,
        device: None,
        fit_items: 10_000,
        shard_items: 150,
        out,
        resume: false,
    }
}

fn shards(dir: &Path) -> Vec<SidsFile> {
    let manifest = ShardsManifest::of(dir).unwrap().unwrap();
    for (name, digest) in &manifest.files {
        assert_eq!(file_digest(&dir.join(name)).unwrap(), *digest);
    }
    (0..manifest.shards).map(|at| read_sids(&dir.join(merge::shard_name(at))).unwrap()).collect()
}

/// The shards hold, row for row, what an in-memory build writes when the sample is everything.
#[test]
fn shards_equal_the_table_of_an_in_memory_build() {
    let dir = tempfile::tempdir().unwrap();
    let quantizer = quantizer();
    for encoder in [None, Some("hashed"), Some("lsa")] {
        let items = table(dir.path(), encoder.is_none());
        let out = dir.path().join(format!("shards-{}", encoder.unwrap_or_default()));
        let job = StreamJob { encoder, ..job(&items, &quantizer, &out) };
        let manifest = build(&job, None).unwrap();
        let read = read_items(&items, &job.options).unwrap();
        let source = Content::choose(&read, None, encoder, 0).unwrap();
        let built =
            build_in_memory(&read, &source.vectors(&read).unwrap(), &source.name(), &quantizer, &|_| true).unwrap();
        let whole = dir.path().join(format!("catalogue-{}", encoder.unwrap_or_default()));
        built.catalogue.write(&whole, &built.residual_norms, built.quantizer.as_ref(), &|at| source.save(at)).unwrap();
        let expected = read_sids(&whole.join("sids.parquet")).unwrap();
        let found = shards(&out);
        assert_eq!((found.len(), manifest.items, manifest.duplicates, manifest.rejected), (5, 700, 7, 3));
        let keys: Vec<&str> = found.iter().flat_map(|shard| shard.keys.iter()).collect();
        assert_eq!(keys, expected.keys.iter().collect::<Vec<_>>());
        let codes: Vec<u16> = found.iter().flat_map(|shard| shard.table.flat()).copied().collect();
        assert_eq!(codes, expected.table.flat());
        assert_eq!(&manifest.spec, expected.table.spec());
        assert_eq!(found.iter().flat_map(|s| s.collision_ranks.clone()).collect::<Vec<_>>(), expected.collision_ranks);
        assert_eq!(found.iter().flat_map(|s| s.residual_norms.clone()).collect::<Vec<_>>(), expected.residual_norms);
        let digests: Vec<[u8; 16]> = found.iter().flat_map(|s| s.embedding_digests.clone()).collect();
        assert_eq!(digests, expected.embedding_digests);
        let catalogue = Catalogue::open(&whole).unwrap();
        let health = crate::jobs::inspect::tokenizer(&catalogue);
        assert_eq!(
            (health.unique_prefixes, health.max_group),
            (manifest.health.unique_prefixes, manifest.health.max_group)
        );
        assert_eq!(health.usage, manifest.health.usage);
        // Repeated rows weigh a little in the one and not in the other.
        let away = (health.relative_error - manifest.health.relative_error).abs();
        assert!(away < 0.02, "{} {}", health.relative_error, manifest.health.relative_error);
        assert_eq!(catalogue.keys.find("k3").map(|ItemIdx(row)| row), Some(3));
    }
}

/// A build that stops anywhere goes on to the same bytes.
#[test]
fn a_build_that_stops_anywhere_ends_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (items, quantizer) = (table(dir.path(), true), quantizer());
    let whole = dir.path().join("whole");
    let expected = build(&job(&items, &quantizer, &whole), None).unwrap();
    let out = dir.path().join("out");
    let job = job(&items, &quantizer, &out);
    let building = plan::folder_of(&out);
    build(&job, None).unwrap();
    // What a kill leaves behind: everything up to some file, which is not there or is torn.
    for gone in [
        "fitted.json",
        "parts/00000.json",
        "parts/00002.json",
        "parts/00004.json",
        "sids",
        "sids/part-00003.parquet",
        "sids/last",
    ] {
        let _ = fs::remove_dir_all(&out);
        stop_at(&job, &building, gone);
        let refused = build(&job, None).unwrap_err();
        assert_eq!(exit_code(&refused), 73);
        assert!(refused.to_string().contains("--resume"), "{refused}");
        let resumed = build(&StreamJob { resume: true, ..job.clone() }, None).unwrap();
        assert_eq!(
            (resumed.files, resumed.health.usage),
            (expected.files.clone(), expected.health.usage.clone()),
            "{gone}"
        );
        assert!(!building.exists());
        // What is finished needs no further work, and other quantisers do not take its place.
        let again = build(&StreamJob { resume: true, ..job.clone() }, None).unwrap();
        assert_eq!(again.files, expected.files);
        assert_eq!(exit_code(&build(&job, None).unwrap_err()), 73);
        let other = QuantizerConfig { seed: 9, ..quantizer.clone() };
        let refused = build(&StreamJob { resume: true, quantizer: &other, ..job.clone() }, None).unwrap_err();
        assert_eq!(exit_code(&refused), 73);
    }
    // Other settings do not go on.
    let _ = fs::remove_dir_all(&out);
    stop_at(&job, &building, "parts/00002.json");
    let other = QuantizerConfig { seed: 3, ..quantizer.clone() };
    let refused = build(&StreamJob { resume: true, quantizer: &other, ..job.clone() }, None).unwrap_err();
    assert_eq!(exit_code(&refused), 2);
    assert!(refused.to_string().contains("settings: quantizer"), "{refused}");
}

/// Builds until the file `gone` would be written, then leaves as a kill would.
fn stop_at(job: &StreamJob, building: &Path, gone: &str) {
    let place = Workplace::enter(job).unwrap();
    let stream = ItemStream::open(job.items, &job.options, false).unwrap();
    let sizes = Sizes::of(job.shard_items);
    let fitted = fit(job, &place, &stream, sizes, &|| Ok(())).unwrap();
    let quantizer = rqvae::load_quantizer(&building.join("quantizer")).unwrap();
    let parts = parts::encode(
        &place,
        &stream,
        &parts::Encoders { content: None, quantizer: quantizer.as_ref(), device: None },
        &fitted,
        sizes,
        &|| Ok(()),
    )
    .unwrap();
    let after = |name: &str| {
        let _ = fs::remove_file(building.join(name));
    };
    match gone {
        "fitted.json" => {
            after(gone);
            (0..parts.len()).for_each(|at| after(&format!("parts/{at:05}.json")));
        }
        part if part.starts_with("parts/") => {
            let first: usize = part[6..11].parse().unwrap();
            (first..parts.len()).for_each(|at| after(&format!("parts/{at:05}.json")));
            fs::write(building.join(format!("parts/{first:05}.run")), "torn").unwrap();
        }
        sids => {
            let runs: Vec<_> =
                parts.iter().enumerate().map(|(at, p)| (run_path(building, at), p.run.clone())).collect();
            let spec = SidSpec {
                codebook_sizes: quantizer.codebook_sizes().to_vec(),
                suffix_size: Some(suffix_room(merge::count(&runs, 2, 256).unwrap().largest as u32, 256)),
            };
            let meta = SidsMeta {
                method: "rkmeans".into(),
                encoder: "embedding column".into(),
                quantizer_digest: file_digest(&building.join("quantizer/quantizer.safetensors")).unwrap(),
                content_digest: String::new(),
                seed: 0,
            };
            if sids != "sids" {
                merge::write_shards(&runs, &spec, false, &meta, (building, job.shard_items), &mut |_| Ok(())).unwrap();
                after(sids);
            }
        }
    }
    fs::write(building.join("parts/.00001.tmp"), "torn").unwrap();
}

#[test]
fn what_cannot_be_built_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let quantizer = quantizer();
    let out = dir.path().join("out");
    let refused = |name: &str, text: &str, fit_items: usize| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let error = build(&StreamJob { fit_items, ..job(&path, &quantizer, &out) }, None).unwrap_err();
        let _ = fs::remove_dir_all(plan::folder_of(&out));
        (exit_code(&error), format!("{error:#}"))
    };
    let row = |id: usize, x: f32| format!("{{\"item_id\":{id},\"embedding\":[{x:?},1.5]}}\n");
    let rows: String = (0..50).map(|at| row(at, at as f32)).collect();
    let (code, message) = refused("twice.jsonl", &(rows.clone() + &row(7, 0.25)), 100);
    assert!(code == 65 && message.contains("lines 8 and 51"), "{code} {message}");
    let (code, message) = refused("empty.csv", "item_id,embedding\n", 100);
    assert!(code == 65 && message.contains("no items"), "{code} {message}");
    let (code, message) = refused("bad.csv", "item_id,embedding\n1,nan\n2,\n", 100);
    assert!(code == 65 && message.contains("2 of 2 rows") && message.contains("NaN"), "{code} {message}");
    let (code, message) = refused("cut.jsonl", &(rows.clone() + "{\"item_id\":"), 100);
    assert!(code == 65 && message.contains("1 of 51 rows"), "{code} {message}");
    let same: String = (0..300).map(|at| row(at, 2.0)).collect();
    let (code, message) = refused("same.jsonl", &same, 100);
    assert!(code == 65 && message.contains("300 items"), "{code} {message}");
    let (code, _) = refused("fine.jsonl", &rows, 0);
    assert_eq!(code, 2);
    let path = dir.path().join("fine.jsonl");
    let mut last = job(&path, &quantizer, &out);
    last.options.dedupe_last = true;
    assert_eq!(exit_code(&build(&last, None).unwrap_err()), 2);
    let (code, message) = refused("x.parquet", "PAR1 and nothing else", 10);
    assert!(code == 65 && message.contains("x.parquet"), "{code} {message}");
}
