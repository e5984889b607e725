//! The binary from outside: help, exit codes, and the whole line on a small generated shop.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Shop {
    dir: tempfile::TempDir,
}

impl Shop {
    /// A generated data directory.
    fn new() -> Self {
        let shop = Self { dir: tempfile::tempdir().unwrap() };
        shop.ok(&["data", "make-demo", "--items", "1920", "--users", "500", "--out", "shop"]);
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sidrec")).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Fails with `code` and a message that holds `words`.
    fn fails(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = self.run(args);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        for word in words {
            assert!(message.contains(word), "{args:?}: expected `{word}` in: {message}");
        }
        assert!(!message.contains("panicked"), "{message}");
    }
}

const BUILD: [&str; 9] =
    ["sids", "build", "--items", "shop/items.jsonl", "--encoder", "hashed", "--codebook-size", "32", "--out"];

fn build(out: &str) -> Vec<&str> {
    BUILD.iter().copied().chain([out]).collect()
}

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["train", "--catalogue", "catalogue", "--interactions", "shop/interactions.csv", "--preset", "quick"];
    base.iter().copied().chain(["--out", out]).chain(more.iter().copied()).collect()
}

/// Where a GPU is and where none is; a device that a method would not use is not spoken of.
#[test]
fn quantisers_are_fitted_where_they_can_be() {
    let shop = Shop::new();
    let short = ["--set", "rqvae.epochs=2", "--set", "rqvae.min_steps=1", "--set", "rqvae.hidden=[16]"];
    let with = |out: &'static str, more: &[&'static str]| -> Vec<&'static str> {
        build(out).into_iter().chain(short).chain(more.iter().copied()).collect()
    };
    let said = |args: &[&str]| {
        let output = shop.run(args);
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(&with("auto", &["--method", "rqvae", "--device", "auto"])).contains("device: "));
    assert!(!said(&with("cpu", &["--method", "rqvae", "--device", "cpu"])).contains("device: "));
    assert!(!said(&with("plain", &["--device", "auto"])).contains("device: "));
    for method in ["rqvae", "rkmeans"] {
        let output = shop.run(&with(method, &["--method", method, "--device", "cuda"]));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(2), "{message}");
            assert!(message.contains("--device cuda: ") && message.trim().lines().count() == 1, "{message}");
            assert!(!shop.path(method).exists());
        }
    }
}

#[test]
fn every_command_has_help_with_two_examples() {
    let shop = Shop { dir: tempfile::tempdir().unwrap() };
    for command in [
        "demo",
        "data",
        "data check",
        "data make-demo",
        "data make-vectors",
        "embed",
        "sids",
        "sids build",
        "sids inspect",
        "sids lookup",
        "sids tree",
        "sids add",
        "sids remove",
        "train",
        "eval",
        "cold-start",
        "recommend",
        "serve",
        "bench fit",
        "bench encode",
        "bench serve",
        "bench trie",
        "bench beam",
        "pack",
        "completions",
    ] {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = shop.ok(&args);
        let examples = help.split("Examples:").nth(1).unwrap_or_default();
        assert!(examples.matches("sidrec ").count() >= 2, "{command}: {help}");
    }
    shop.fails(&["nonsense"], 2, &["nonsense"]);
    shop.fails(&["demo", "--sed", "1"], 2, &["--seed"]);
}

#[test]
fn the_line_by_hand_with_resume_and_determinism() {
    let shop = Shop::new();
    let check: serde_json::Value = serde_json::from_str(&shop.ok(&[
        "data",
        "check",
        "--items",
        "shop/items.jsonl",
        "--interactions",
        "shop/interactions.csv",
    ]))
    .unwrap();
    assert_eq!((check["items"].as_u64(), check["users"].as_u64()), (Some(1920), Some(500)));

    // The same seed gives the same IDs, and a catalogue is never overwritten.
    shop.ok(&build("catalogue"));
    shop.ok(&build("again"));
    let index = |name: &str| fs::read(shop.path(name).join("index.safetensors")).unwrap();
    assert_eq!(index("catalogue"), index("again"));
    shop.fails(&build("catalogue"), 73, &["catalogue", "not empty"]);
    let inspect: serde_json::Value =
        serde_json::from_str(&shop.ok(&["sids", "inspect", "catalogue", "--json"])).unwrap();
    assert_eq!(inspect["items"], 1920);
    let id = fs::read_to_string(shop.path("catalogue/items.jsonl")).unwrap();
    let card: serde_json::Value = serde_json::from_str(id.lines().next().unwrap()).unwrap();
    let key = card["item_id"].as_str().unwrap();
    let line = shop.ok(&["sids", "lookup", "catalogue", key]);
    let sid = line.split('\t').nth(1).unwrap();
    assert!(shop.ok(&["sids", "tree", "catalogue", sid]).contains(key));
    shop.fails(&["sids", "lookup", "catalogue", "no-such-item"], 65, &["no-such-item"]);

    // Twice the same training gives the same weights; one that is cut short and resumed does too.
    shop.ok(&train("run", &[]));
    shop.ok(&train("run2", &[]));
    let metrics = |run: &str| {
        let text = fs::read_to_string(shop.path(run).join("metrics.jsonl")).unwrap();
        let strip = |line: &str| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            record["seconds"] = 0.into();
            record["examples_per_second"] = 0.into();
            record.to_string()
        };
        text.lines().map(strip).collect::<Vec<_>>()
    };
    let weights = |run: &str| {
        let best = fs::read_to_string(shop.path(run).join("best")).unwrap();
        fs::read(shop.path(run).join(best).join("model.safetensors")).unwrap()
    };
    assert_eq!(metrics("run"), metrics("run2"));
    assert_eq!(weights("run"), weights("run2"));
    shop.fails(&train("run", &[]), 73, &["run", "not empty"]);
    for (run, signal) in [("run3", "-KILL"), ("run4", "-TERM")] {
        kill_and_resume(&shop, run, signal);
        assert_eq!(metrics("run"), metrics(run));
        assert_eq!(weights("run"), weights(run));
    }
    shop.fails(&train("run", &["--resume", "--set", "train.batch_size=32"]), 2, &["train.batch_size was", "is 32"]);

    let eval = ["eval", "--run", "run", "--catalogue", "catalogue", "--interactions", "shop/interactions.csv"];
    let more = ["--beam", "20", "--write-run", "x.run", "--write-qrels", "x.qrels"];
    let report: serde_json::Value = serde_json::from_str(&shop.ok(&[&eval[..], &more[..]].concat())).unwrap();
    assert_eq!((report["users"].as_u64(), report["invalid"].as_u64()), (Some(500), Some(0)));
    assert_eq!(report["protocol"]["seen"], "exclude");
    for key in ["recall@5", "ndcg@5", "recall@10", "ndcg@10", "mrr@10"] {
        assert!(report["metrics"][key].is_number() && report["ci95"][key].is_number(), "{key}");
    }
    assert_eq!(fs::read_to_string(shop.path("x.qrels")).unwrap().lines().count(), 500);

    for out in ["out.csv", "out.jsonl", "out.parquet"] {
        let args = ["recommend", "--run", "run", "--catalogue", "catalogue", "--histories", "shop/interactions.csv"];
        shop.ok(&[&args[..], &["--k", "3", "--beam", "10", "--out", out]].concat());
        assert!(fs::metadata(shop.path(out)).unwrap().len() > 1000);
    }
    assert_eq!(fs::read_to_string(shop.path("out.csv")).unwrap().lines().count(), 1 + 3 * 500);
    bad_runs(&shop, &eval);
}

/// Starts a run, signals it after its first checkpoint, and some times more as it resumes, somewhere; then lets it end.
fn kill_and_resume(shop: &Shop, run: &str, signal: &str) {
    let latest = shop.path(run).join("latest");
    let rounds = if signal == "-KILL" { 10 } else { 4 };
    for round in 0..rounds {
        let more: &[&str] = if round == 0 { &[] } else { &["--resume"] };
        let mut child = Command::new(env!("CARGO_BIN_EXE_sidrec"))
            .args(train(run, more))
            .current_dir(shop.dir.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !latest.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        if round > 0 {
            std::thread::sleep(std::time::Duration::from_millis(rqvae::mix(round) % 400));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let code = child.wait().unwrap().code();
        // Killed; or interrupted after a clean checkpoint, unless it had not come to watch for signals yet, or was done.
        let fine: &[Option<i32>] = if signal == "-KILL" { &[None, Some(0)] } else { &[Some(143), None, Some(0)] };
        assert!(fine.contains(&code), "{signal}: {code:?}");
        assert!(latest.exists() && (round > 0 || signal == "-KILL" || code == Some(143)), "{signal}: {code:?}");
    }
    shop.ok(&train(run, &["--resume"]));
}

fn bad_runs(shop: &Shop, eval: &[&str]) {
    // A run of another SID table is refused by name.
    let mut other = build("other");
    other.extend(["--seed", "5"]);
    shop.ok(&other);
    let args: Vec<&str> = eval.iter().map(|a| if *a == "catalogue" { "other" } else { *a }).collect();
    shop.fails(&args, 65, &["SID table"]);
    // A flipped byte in a checkpoint or an index is refused with the file's name.
    let best = fs::read_to_string(shop.path("run/best")).unwrap();
    flip(&shop.path("run").join(best).join("model.safetensors"));
    shop.fails(eval, 65, &["model.safetensors"]);
    flip(&shop.path("other/index.safetensors"));
    shop.fails(&["sids", "inspect", "other"], 65, &["index.safetensors"]);
    fs::write(shop.path("cut.parquet"), &fs::read(shop.path("out.parquet")).unwrap()[..500]).unwrap();
    shop.fails(&["embed", "--items", "cut.parquet", "--out", "v.npy"], 65, &["cut.parquet"]);
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn bad_input_is_named_with_its_exit_code() {
    let shop = Shop { dir: tempfile::tempdir().unwrap() };
    let write = |name: &str, text: &str| fs::write(shop.path(name), text).unwrap();
    let lines: Vec<String> = (0..20).map(|i| format!("{{\"item_id\":\"i{i}\",\"title\":\"thing {i}\"}}")).collect();
    write("items.jsonl", &lines.join("\n"));
    let sids = |items: &'static str| vec!["sids", "build", "--items", items, "--out", "c"];
    shop.fails(&sids("nowhere.jsonl"), 66, &["nowhere.jsonl"]);
    write("twice.jsonl", "{\"item_id\":1,\"title\":\"a\"}\n{\"item_id\":1,\"title\":\"b\"}\n");
    shop.fails(&sids("twice.jsonl"), 65, &["twice.jsonl", "1"]);
    write("columns.csv", "itemid,title\n1,a\n");
    shop.fails(&sids("columns.csv"), 65, &["columns.csv", "item_id"]);
    write("nan.npy", "no array");
    shop.fails(&["sids", "build", "--items", "items.jsonl", "--embeddings", "nan.npy", "--out", "c"], 65, &["nan.npy"]);
    assert!(!shop.path("c").exists());

    shop.ok(&["sids", "build", "--items", "items.jsonl", "--encoder", "hashed", "--codebook-size", "4", "--out", "c"]);
    let quantizer = |config: &'static str, method: &'static str| {
        let more =
            ["--method", method, "--config", config, "--encoder", "hashed", "--codebook-size", "6", "--out", "d"];
        [&["sids", "build", "--items", "items.jsonl"][..], &more[..]].concat()
    };
    write("typo.toml", "[rkmeans]\nnormalise = true\n");
    shop.fails(&quantizer("typo.toml", "rkmeans"), 2, &["typo.toml", "normalise", "normalize"]);
    write("norm.toml", "[rkmeans]\nnormalize = true\n");
    shop.fails(&quantizer("norm.toml", "lsh"), 2, &["codebook_size", "power of two"]);
    shop.fails(&[&quantizer("norm.toml", "hkmeans")[..], &["--collisions", "min-cost"]].concat(), 2, &["hkmeans"]);
    shop.ok(&quantizer("norm.toml", "rkmeans"));
    let train = |events: &'static str| {
        vec!["train", "--catalogue", "c", "--interactions", events, "--preset", "quick", "--out", "r"]
    };
    write("unknown.csv", "user_id,item_id,timestamp\nu,x,1\nu,y,2\nu,i1,3\n");
    shop.fails(&train("unknown.csv"), 65, &["unknown.csv"]);
    write("columns2.csv", "user_id,item,timestamp\nu,i1,1\n");
    shop.fails(&train("columns2.csv"), 65, &["columns2.csv", "item_id"]);
    shop.fails(&train("nowhere.csv"), 66, &["nowhere.csv"]);
    write("empty.csv", "user_id,item_id,timestamp\n");
    shop.fails(&train("empty.csv"), 65, &["empty.csv", "no interactions"]);
    assert!(!shop.path("r").exists());
    // Rows that cannot be used: as many as one says.
    write("some.csv", "user_id,item_id,timestamp\nu,i1,1\nu,i2,x\nu,i3,3\nu,i4,4\nu,i5,5\nu,i6,6\n");
    shop.fails(&train("some.csv"), 65, &["some.csv", "--max-reject-fraction"]);
    shop.fails(&[&train("some.csv")[..], &["--max-reject-fraction", "2"]].concat(), 2, &["from 0 to 1"]);
    shop.ok(&[&train("some.csv")[..], &["--max-reject-fraction", "0.5", "--set", "train.max_epochs=1"]].concat());
    // Nothing to read, nowhere to write: told before any work.
    write("mute.csv", "item_id,price\na,1\nb,2\n");
    shop.fails(&["sids", "build", "--items", "mute.csv", "--out", "m"], 65, &["none of 2 items has a text"]);
    shop.fails(
        &["sids", "build", "--items", "items.jsonl", "--out", "items.jsonl/c"],
        73,
        &["items.jsonl is no directory"],
    );
    shop.fails(&["embed", "--items", "items.jsonl", "--out", "v.txt"], 2, &["v.txt", ".npy"]);
    let ask =
        ["eval", "--run", "r", "--catalogue", "c", "--interactions", "some.csv", "--report", "items.jsonl/r.json"];
    shop.fails(&ask, 73, &["items.jsonl/r.json"]);

    let config = ["--config", "bad.toml"];
    write("bad.toml", "[train]\nbatchsize = 3\n");
    write("events.csv", "user_id,item_id,timestamp\nu,i1,1\nu,i2,2\nu,i3,3\nu,i4,4\n");
    shop.fails(&[&train("events.csv")[..], &config[..]].concat(), 2, &["batchsize", "train.batch_size"]);
    shop.fails(&[&train("events.csv")[..], &["--model", "tigre"]].concat(), 2, &["tigre", "tiger"]);
    shop.fails(&["eval", "--run", "nothing", "--catalogue", "c", "--interactions", "events.csv"], 66, &["nothing"]);
    assert!(shop.ok(&[&train("events.csv")[..], &["--print-config"]].concat()).contains("# preset rqt quick"));
}

/// Items that come and go: IDs stay, a trained model still fits, what is gone is never recommended.
#[test]
fn items_are_added_and_removed_beside_a_trained_model() {
    let shop = Shop { dir: tempfile::tempdir().unwrap() };
    shop.ok(&["data", "make-demo", "--items", "300", "--users", "60", "--out", "shop"]);
    let text = fs::read_to_string(shop.path("shop/items.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["item_id"].to_string();
    fs::write(shop.path("old.jsonl"), lines[..280].join("\n")).unwrap();
    fs::write(shop.path("new.jsonl"), lines[270..].join("\n")).unwrap();
    fs::write(shop.path("gone.jsonl"), lines[100..110].join("\n")).unwrap();
    let events = fs::read_to_string(shop.path("shop/interactions.csv")).unwrap();
    let late: Vec<String> = lines[280..].iter().map(|line| id(line).replace('"', "")).collect();
    let kept: Vec<&str> =
        events.lines().filter(|line| !late.iter().any(|id| line.split(',').any(|f| f == id))).collect();
    fs::write(shop.path("events.csv"), kept.join("\n")).unwrap();
    let build =
        ["sids", "build", "--items", "old.jsonl", "--method", "balanced", "--codebook-size", "16", "--out", "c"];
    shop.ok(&[&build[..], &["--collisions", "min-cost"]].concat());
    let train = ["train", "--catalogue", "c", "--interactions", "events.csv", "--preset", "quick", "--out", "run"];
    shop.ok(&[&train[..], &["--set", "train.max_epochs=1", "--set", "model.item_embedding=true"]].concat());

    let parse = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let added = parse(shop.ok(&["sids", "add", "c", "--items", "new.jsonl"]));
    assert_eq!(
        (added["added"].as_u64(), added["known"].as_u64(), added["outdated"].as_u64()),
        (Some(20), Some(10), Some(0))
    );
    assert_eq!((added["live"].as_u64(), added["out"].as_str()), (Some(300), Some("c-v2")));
    let removed = parse(shop.ok(&["sids", "remove", "c-v2", "--items", "gone.jsonl"]));
    assert_eq!((removed["removed"].as_u64(), removed["live"].as_u64()), (Some(10), Some(290)));
    let ids: Vec<String> = lines.iter().map(|line| id(line).replace('"', "")).collect();
    let lookup = |catalogue: &str, ids: &[String]| {
        let args: Vec<&str> = ["sids", "lookup", catalogue].into_iter().chain(ids.iter().map(String::as_str)).collect();
        shop.ok(&args)
    };
    let found = lookup("c-v3", &ids);
    assert_eq!(lookup("c", &ids[..280]), lookup("c-v3", &ids[..280]).replace("\tremoved", ""));
    assert_eq!(found.lines().filter(|line| line.ends_with("\tremoved")).count(), 10);
    assert_eq!(lookup("c-v2", &ids), found.replace("\tremoved", ""));
    let unique: std::collections::BTreeSet<_> =
        lookup("c-v2", &ids).lines().map(|line| line.split('\t').nth(1).unwrap().to_string()).collect();
    assert_eq!(unique.len(), 300);

    for (catalogue, gone) in [("c", 0), ("c-v2", 0), ("c-v3", 10)] {
        let out = format!("{catalogue}.csv");
        let args = ["recommend", "--run", "run", "--catalogue", catalogue, "--histories", "events.csv", "--k", "50"];
        shop.ok(&[&args[..], &["--out", &out]].concat());
        let found = fs::read_to_string(shop.path(&out)).unwrap();
        let has = |id: &String| found.lines().any(|line| line.split(',').nth(2) == Some(id));
        assert_eq!(ids[100..110].iter().any(has), gone == 0, "{catalogue}");
    }
    let again = parse(shop.ok(&["sids", "add", "c-v3", "--items", "gone.jsonl"]));
    assert_eq!((again["restored"].as_u64(), again["live"].as_u64()), (Some(10), Some(300)));
    assert_eq!(lookup("c-v2", &ids), lookup("c-v4", &ids));
    let report = parse(shop.ok(&["sids", "inspect", "c-v3", "--json", "--out", "page"]));
    let page = fs::read_to_string(shop.path("page/index.html")).unwrap();
    assert_eq!((page.matches("<svg").count(), page.matches("{{").count()), (5, 0));
    assert_eq!(page.matches("<circle").count(), 300);
    assert_eq!((report["removed"].as_u64(), report["collisions"]["policy"].as_str()), (Some(10), Some("min-cost")));
    shop.fails(&["sids", "add", "c", "--items", "new.jsonl"], 73, &["c-v2", "--out"]);
    shop.fails(&["sids", "add", "nowhere", "--items", "new.jsonl"], 66, &["nowhere is no catalogue"]);
    shop.fails(&["sids", "add", "c", "--items", "new.jsonl", "--encoder", "hashed", "--out", "y"], 2, &["lsa"]);
    shop.fails(&["sids", "remove", "c", "--items", "new.jsonl", "--out", "x"], 65, &["20 items"]);
}

#[test]
fn cold_start_by_every_protocol_of_a_kind() {
    let shop = Shop::new();
    let run = |protocol: &'static str, out: &'static str| {
        let base = ["cold-start", "--items", "shop/items.jsonl", "--interactions", "shop/interactions.csv"];
        let more = ["--encoder", "hashed", "--preset", "quick", "--protocol", protocol, "--out", out];
        base.iter().chain(&more).copied().collect::<Vec<_>>()
    };
    shop.ok(&run("tiger", "cold"));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(shop.path("cold/report.json")).unwrap()).unwrap();
    assert!(report["held_out_items"].as_u64().unwrap() > 5 && report["removed_interactions"].as_u64().unwrap() > 0);
    assert!(report["users_with_unseen_target"].as_u64().unwrap() > 0);
    let rows = report["rows"].as_array().unwrap();
    let row = |method: &str, epsilon: Option<f64>, k: u64| {
        let found = rows
            .iter()
            .find(|row| row["method"] == method && row["epsilon"] == serde_json::json!(epsilon) && row["k"] == k);
        found.unwrap_or_else(|| panic!("no row {method} {epsilon:?} {k}")).clone()
    };
    let by_codes = [("rqt, 3-code match", Some(0.1)), ("tiger, 1-code match", Some(0.1))];
    for (method, epsilon) in [("popular", None), ("content-knn", None)].into_iter().chain(by_codes) {
        let row = row(method, epsilon, 10);
        for key in ["recall_unseen", "ndcg_unseen", "recall_all", "ndcg_all", "recall_warm", "unseen_share"] {
            assert!((0.0..=1.0).contains(&row[key].as_f64().unwrap()), "{method} {key}");
        }
    }
    // What is never counted is never popular, and a share of zero shows nothing unseen.
    assert_eq!(row("popular", None, 50)["unseen_share"], 0.0);
    assert_eq!(row("rqt + content-knn, slots", Some(0.0), 10)["recall_unseen"], 0.0);
    assert_eq!(row("rqt + content-knn, slots", Some(0.3), 10)["unseen_share"], 0.3);
    // The share of all places is met, in whichever lists.
    for method in ["memory, shares", "hybrid, shares"] {
        let share = row(method, Some(0.1), 10)["unseen_share"].as_f64().unwrap();
        assert!((share - 0.1).abs() < 0.01, "{method} {share}");
    }
    row("two-tower, slots", Some(0.1), 10);
    row("hybrid of tiger, shares", Some(0.1), 10);
    let models = report["trainings"].as_array().unwrap().iter().map(|training| &training["model"]);
    assert_eq!(models.collect::<Vec<_>>(), ["two-tower", "sasrec", "tiger", "rqt"]);
    assert!(report["paired"].as_array().unwrap().iter().all(|row| row["against"] == "content-knn, slots"));
    let page = fs::read_to_string(shop.path("cold/report.html")).unwrap();
    assert!(page.contains("</html>") && page.contains("Where it fails") && !page.contains("NaN"));
    // Lists are kept: going on asks nothing again and finds the same, unless the question is another one.
    let first = fs::read(shop.path("cold/report.json")).unwrap();
    let again = [run("tiger", "cold"), vec!["--resume"]].concat();
    shop.ok(&again);
    let rows_of = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap()["rows"].clone();
    assert_eq!(rows_of(&first), rows_of(&fs::read(shop.path("cold/report.json")).unwrap()));
    shop.fails(&[again, vec!["--seed", "5"]].concat(), 73, &["another configuration"]);
    shop.fails(&run("tiger", "cold"), 73, &["cold", "not empty"]);
    shop.fails(&[run("time", "x"), vec!["--share", "2"]].concat(), 2, &["--share 2"]);
}

/// Several sources, falling sizes, and what users buy together: built, inspected, extended; and the benches of it.
#[test]
fn ids_of_several_sources_that_know_sessions() {
    let shop = Shop::new();
    let parse = |text: String| -> serde_json::Value { serde_json::from_str(text.lines().last().unwrap()).unwrap() };
    let all = fs::read_to_string(shop.path("shop/items.jsonl")).unwrap();
    let lines: Vec<&str> = all.lines().collect();
    fs::write(shop.path("old.jsonl"), lines[..1900].join("\n") + "\n").unwrap();
    fs::write(shop.path("new.jsonl"), lines[1900..1910].join("\n") + "\n").unwrap();
    fs::write(shop.path("newer.jsonl"), lines[1910..].join("\n") + "\n").unwrap();
    let build = |more: &[&'static str]| -> Vec<&'static str> {
        let base = ["sids", "build", "--items", "old.jsonl", "--encoder", "hashed", "--method", "rqvae", "--json"];
        let small = ["--set", "rqvae.epochs=2", "--set", "rqvae.min_steps=0", "--set", "rqvae.hidden=[32]"];
        [&base[..], &small[..], more].concat()
    };
    let interactions = ["--interactions", "shop/interactions.csv"];
    let additions = [
        "--source",
        "lsa",
        "--codebook-size",
        "64,32,16",
        "--set",
        "rqvae.progressive=true",
        "--set",
        "rqvae.contrast_weight=10",
        "--set",
        "rqvae.align_weight=1",
        "--collisions",
        "nearest-free",
    ];
    let report = parse(shop.ok(&build(&[&interactions[..], &additions[..], &["--out", "c"]].concat())));
    assert_eq!(report["codebook_sizes"], serde_json::json!([64, 32, 16]));
    assert!(report["encoder"].as_str().unwrap().contains(" + "), "{report}");
    let (moved, error) = (&report["collisions"]["moved"], &report["collisions"]["relative_error"]);
    assert!(moved.as_u64().unwrap() > 0 && error.as_f64().unwrap() > 0.0, "{report}");
    let added = parse(shop.ok(&["sids", "add", "c", "--items", "new.jsonl"]));
    assert_eq!(added["added"], 10);
    // Every version keeps the encoders of all sources, as they were fitted.
    let added = parse(shop.ok(&["sids", "add", "c-v2", "--items", "newer.jsonl"]));
    assert_eq!(added["added"], 10);
    for file in ["encoder.json", "source-1/encoder.json", "source-1/lsa.safetensors"] {
        let read = |catalogue: &str| fs::read(shop.path(catalogue).join("encoder").join(file)).unwrap();
        assert_eq!(read("c"), read("c-v3"), "{file}");
    }
    shop.fails(
        &["sids", "add", "c", "--items", "new.jsonl", "--source", "lsa", "--source", "lsa", "--out", "d"],
        2,
        &["--source"],
    );
    // Without interactions there is nothing to contrast with, and a typing mistake is named.
    shop.fails(&build(&["--set", "rqvae.contrast_weight=1", "--out", "d"]), 2, &["rqvae.contrast_weight"]);
    shop.fails(&build(&["--set", "rqvae.progresive=true", "--out", "d"]), 2, &["rqvae.progressive"]);
    shop.fails(&build(&["--codebook-size", "64,32", "--out", "d"]), 2, &["codebook_sizes"]);
    let wrong = ["--collaborative", "vectors.npy", "--set", "rqvae.align_weight=1", "--out", "d"];
    shop.ok(&["embed", "--items", "old.jsonl", "--encoder", "hashed", "--out", "vectors.npy"]);
    shop.fails(&build(&wrong), 65, &["vectors.npy", "rqvae.latent_dim", "256"]);
    shop.fails(&build(&["--source", "data/gone.npy", "--out", "d"]), 66, &["data/gone.npy"]);
    // A streaming build has one source and knows no interactions.
    for (name, value) in
        [("--source", "lsa"), ("--interactions", "shop/interactions.csv"), ("--collaborative", "vectors.npy")]
    {
        shop.fails(&build(&["--stream", name, value, "--out", "d"]), 2, &["--stream", name]);
    }
    let printed = shop.ok(&build(&["--print-config", "--set", "rqvae.beta=0.5", "--out", "d"]));
    assert!(printed.contains("rqvae.beta = 0.5") && printed.contains("# --set"), "{printed}");

    let small =
        ["--items", "600", "--dim", "16", "--codebook-size", "16", "--iterations", "3", "--runs", "2", "--json"];
    for name in ["fit", "encode"] {
        let line = parse(shop.ok(&[&["bench", name][..], &small[..]].concat()));
        assert_eq!((&line["name"], &line["params"]["items"]), (&name.into(), &600.into()));
        assert!(line["checks"].as_object().unwrap().values().all(|check| check == true), "{line}");
        assert!(line["per_second"].as_f64().unwrap() > 0.0 && line["p50_ms"].as_f64().unwrap() > 0.0);
    }
}
