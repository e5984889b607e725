//! Hostile and broken input from the command line: what is said, which exit code, and that it ends.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Exit code, and what was said on both streams.
    fn run(&self, args: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_sidrec"))
            .args(args)
            .current_dir(self.dir.path())
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path("hub"))
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        (output.status.code().unwrap(), said)
    }

    /// Builds a catalogue of `items`, and takes it away again.
    fn build(&self, items: &str, more: &[&str]) -> (i32, String) {
        let base = ["sids", "build", "--codebook-size", "4", "--levels", "2", "--out", "c", "--items", items];
        let found = self.run(&[&base[..], more].concat());
        let _ = fs::remove_dir_all(self.path("c"));
        let _ = fs::remove_dir_all(self.path(".c.building"));
        found
    }

    /// Checks a table of (what is wrong with it, file, its bytes, exit code, words of the message).
    fn items(&self, cases: &[(&str, &str, Vec<u8>, i32, &str)]) {
        for (what, name, bytes, code, words) in cases {
            self.write(name, bytes);
            let began = Instant::now();
            let (found, said) = self.build(name, &["--encoder", "hashed"]);
            assert_eq!(found, *code, "{what}: {said}");
            assert!(
                said.contains(words) && (*code == 0 || said.contains(name)),
                "{what}: expected `{words}` in: {said}"
            );
            assert!(began.elapsed() < Duration::from_mins(1), "{what}");
        }
    }
}

fn rows(n: usize) -> String {
    (0..n).fold("item_id,title\n".to_owned(), |mut text, i| {
        let _ = writeln!(text, "i{i},thing {i}");
        text
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

#[test]
fn broken_tables_of_items() {
    let place = Place::new();
    let plain = |text: &str| text.as_bytes().to_vec();
    let good = rows(40);
    let deep = format!("{{\"item_id\":1,\"title\":{}}}\n", "[".repeat(200_000));
    let long_id = format!("item_id,title\n{},x\n", "y".repeat(600));
    let packed = gzip(good.as_bytes());
    place.items(&[
        ("BOM and CRLF are fine", "bom.csv", plain(&format!("\u{feff}{}", good.replace('\n', "\r\n"))), 0, "40"),
        ("no file of that kind", "items.xlsx", plain("x"), 65, "unknown kind"),
        ("nothing", "empty.csv", vec![], 65, "empty"),
        ("nothing but a header", "header.csv", plain("item_id,title\n"), 65, "no items"),
        ("no id column", "noid.csv", plain("itemid,title\n1,a\n"), 65, "did you mean `itemid`"),
        ("two columns of one name", "two.csv", plain("item_id,title,title\n1,a,b\n"), 65, "two columns"),
        ("a ragged row", "ragged.csv", plain(&format!("{good}x\n")), 65, "1 fields"),
        ("a NUL byte", "nul.csv", plain(&format!("{good}x,\0\n")), 65, "NUL"),
        ("no UTF-8", "latin.csv", [good.as_bytes(), b"x,\xff\xfe\n"].concat(), 65, "UTF-8"),
        (
            "a quote left open",
            "quote.csv",
            plain(&format!("item_id,title\n1,\"open\n{}", "2,x\n".repeat(1500))),
            65,
            "quote",
        ),
        ("an endless line", "line.csv", [b"item_id,title\n1,".as_slice(), &vec![b'x'; 9 << 20]].concat(), 65, "8 MB"),
        ("an id too long", "longid.csv", plain(&long_id), 65, "600 bytes"),
        ("an id that is no id", "fraction.jsonl", plain("{\"item_id\":1.5,\"title\":\"a\"}\n"), 65, "fraction"),
        ("an id that is empty", "noid.jsonl", plain("{\"item_id\":\"\",\"title\":\"a\"}\n"), 65, "`item_id` is empty"),
        ("deep nesting", "deep.jsonl", plain(&deep), 65, "not one JSON object"),
        ("no JSON", "text.jsonl", plain("hello\nthere\n"), 65, "line 1"),
        ("an array, not rows", "array.jsonl", plain("[{\"item_id\":1}]\n"), 65, "line 1"),
        ("packed is fine", "fine.csv.gz", packed.clone(), 0, "40"),
        ("packed and cut", "cut.csv.gz", packed[..packed.len() - 12].to_vec(), 65, "cut.csv.gz"),
        ("packed and no such thing", "no.csv.gz", plain("nonsense"), 65, "no.csv.gz"),
        ("packed and no such thing", "no.jsonl.zst", plain("nonsense"), 65, "no.jsonl.zst"),
        ("Parquet of nothing", "empty.parquet", vec![], 65, "Parquet"),
        ("Parquet cut", "cut.parquet", plain("PAR1\0\0\0\0PAR1"), 65, "Parquet"),
        (
            "Parquet of noise",
            "noise.parquet",
            (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
            65,
            "Parquet",
        ),
        ("the same item twice", "twice.csv", plain("item_id,title\n1,a\n2,b\n1,a\n"), 0, "2"),
        ("one id, two items", "clash.csv", plain("item_id,title\n1,a\n2,b\n1,c\n"), 65, "line 4: `1`"),
        (
            "numbers beyond 2^53",
            "big.jsonl",
            plain("{\"item_id\":9007199254740993,\"title\":\"a\"}\n{\"item_id\":2,\"title\":\"b\"}\n"),
            0,
            "2",
        ),
    ]);
    fs::create_dir(place.path("folder.csv")).unwrap();
    assert_eq!(place.build("folder.csv", &[]).0, 65);
    assert_eq!(place.build("nowhere.csv", &[]).0, 66);
    assert_eq!(place.build("clash.csv", &["--dedupe", "last", "--encoder", "hashed"]).0, 0);
    // One bad row in two thousand is left out and written down, one in forty stops the run.
    place.write("many.csv", rows(2000) + "x\n");
    let (code, said) =
        place.build("many.csv", &["--encoder", "hashed", "--collisions", "share", "--rejects", "rejects.jsonl"]);
    assert_eq!(code, 0, "{said}");
    let rejects = fs::read_to_string(place.path("rejects.jsonl")).unwrap();
    let reject: serde_json::Value = serde_json::from_str(rejects.lines().next().unwrap()).unwrap();
    assert_eq!((reject["line"].as_u64(), reject["file"].as_str()), (Some(2002), Some("many.csv")));
    assert_eq!(place.build("ragged.csv", &["--encoder", "hashed", "--max-reject-fraction", "0.1"]).0, 0);
    let (code, said) = place.run(&["sids", "build", "--items", "many.csv", "--out", "many.csv"]);
    assert!(code == 73 && said.contains("many.csv"), "{code} {said}");
    let (code, said) = place.run(&["embed", "--items", "bom.csv", "--out", "vectors.txt", "--encoder", "hashed"]);
    assert!(code == 2 && said.contains(".safetensors, .npy, .parquet"), "{code} {said}");
}

/// A NumPy file of `n` rows of `dim` numbers.
fn npy(descr: &str, n: usize, dim: usize, numbers: &[f32]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({n}, {dim}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

/// A safetensors file with that header and `data` bytes behind it.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn hostile_vectors() {
    let place = Place::new();
    place.write("items.csv", rows(40));
    let numbers = |f: &dyn Fn(usize) -> f32| (0..40 * 3).map(f).collect::<Vec<f32>>();
    let fine = numbers(&|i| ((i * i) % 17) as f32);
    let with = |x: f32| numbers(&|i| if i == 64 { x } else { i as f32 });
    let entry = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!("\"embedding\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let good = format!("{{{}}}", entry("F32", "[40,3]", 0, 480));
    let cases: [(&str, &str, Vec<u8>, i32, &str); 26] = [
        ("fine", "v.npy", npy("<f4", 40, 3, &fine), 0, "40"),
        ("NaN", "v.npy", npy("<f4", 40, 3, &with(f32::NAN)), 65, "item `i21` (row 21) holds NaN at place 1"),
        ("infinite", "v.npy", npy("<f4", 40, 3, &with(f32::INFINITY)), 65, "inf"),
        ("zero", "v.npy", npy("<f4", 40, 3, &numbers(&|_| 0.0)), 0, "1 unique prefixes"),
        ("one of them zero", "v.npy", npy("<f4", 40, 3, &with(0.0)), 0, "40"),
        (
            "a constant column",
            "v.npy",
            npy("<f4", 40, 3, &numbers(&|i| if i % 3 == 0 { 5.0 } else { i as f32 })),
            0,
            "40",
        ),
        ("all equal", "v.npy", npy("<f4", 40, 3, &numbers(&|i| (i % 3) as f32)), 0, "largest group 40"),
        ("huge", "v.npy", npy("<f4", 40, 3, &numbers(&|i| if i % 2 == 0 { 3e38 } else { -3e38 })), 0, "40"),
        ("tiny", "v.npy", npy("<f4", 40, 3, &numbers(&|i| i as f32 * 1e-42)), 0, "40"),
        ("too few rows", "v.npy", npy("<f4", 39, 3, &fine[..117]), 65, "39 vectors for 40 items"),
        ("no width", "v.npy", npy("<f4", 40, 0, &[]), 65, "width 0"),
        ("another byte order", "v.npy", npy(">f4", 40, 3, &fine), 65, ">f4"),
        ("objects", "v.npy", npy("|O", 40, 3, &fine), 65, "|O"),
        ("cut", "v.npy", npy("<f4", 40, 3, &fine[..100]), 65, "truncated"),
        ("an absurd shape", "v.npy", npy("<f4", usize::MAX / 2, 99, &fine), 65, "absurd"),
        ("nothing", "v.npy", vec![], 65, "not a NumPy"),
        ("fine", "v.safetensors", safetensors(&good, 480), 0, "1 unique prefixes"),
        ("cut", "v.safetensors", safetensors(&good, 470), 65, "v.safetensors"),
        ("a header longer than the file", "v.safetensors", vec![0xff, 0, 0, 0, 0, 0, 0, 0, b'{'], 65, "v.safetensors"),
        ("an endless header", "v.safetensors", vec![0xff; 8], 65, "v.safetensors"),
        ("no JSON", "v.safetensors", safetensors("{\"a\":", 0), 65, "v.safetensors"),
        ("no UTF-8", "v.safetensors", [&4u64.to_le_bytes()[..], b"{\xff\xfe}"].concat(), 65, "v.safetensors"),
        (
            "a shape that overflows",
            "v.safetensors",
            safetensors(&format!("{{{}}}", entry("F32", "[4611686018427387904,9]", 0, 480)), 480),
            65,
            "v.safetensors",
        ),
        (
            "overlapping arrays",
            "v.safetensors",
            safetensors(
                &format!(
                    "{{{},\"b\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}}}",
                    entry("F32", "[40,3]", 0, 480)
                ),
                480,
            ),
            65,
            "v.safetensors",
        ),
        (
            "whole numbers",
            "v.safetensors",
            safetensors(&format!("{{{}}}", entry("I32", "[40,3]", 0, 480)), 480),
            65,
            "I32",
        ),
        (
            "another width of rows",
            "v.safetensors",
            safetensors(&format!("{{{}}}", entry("F32", "[120]", 0, 480)), 480),
            65,
            "no entry `embedding`",
        ),
    ];
    for (what, name, bytes, code, words) in cases {
        place.write(name, &bytes);
        let (found, said) = place.build("items.csv", &["--embeddings", name]);
        assert_eq!(found, code, "{what}: {said}");
        assert!(said.contains(words), "{what}: expected `{words}` in: {said}");
    }
    place.write("v.txt", "1 2 3");
    assert_eq!(place.build("items.csv", &["--embeddings", "v.txt"]).0, 65);
    assert_eq!(place.build("items.csv", &["--embeddings", "none.npy"]).0, 66);
}

#[test]
fn hostile_embedding_columns_in_memory_and_streamed() {
    let place = Place::new();
    let row = |i: usize, vector: &str| format!("{{\"item_id\":\"i{i}\",\"embedding\":{vector}}}\n");
    let all = |n: usize, vector: &dyn Fn(usize) -> String| (0..n).map(|i| row(i, &vector(i))).collect::<String>();
    let fine = all(40, &|i| format!("[{i},{}.5,1]", i * i % 17));
    let cases = [
        ("fine", fine.clone(), 0, "40"),
        ("one item", all(1, &|_| "[1,2.5]".to_owned()), 0, "1"),
        ("fewer items than codes", all(3, &|i| format!("[{i},2.5]")), 0, "3"),
        ("all equal", all(40, &|_| "[1,2.5]".to_owned()), 0, "largest group 40"),
        ("zero", all(40, &|_| "[0,0.0]".to_owned()), 0, "1 unique prefixes"),
        ("more alike than a suffix tells apart", all(300, &|_| "[1,2.5]".to_owned()), 65, "300 items"),
        ("no number", fine.clone() + &row(40, "[1,\"x\",2]"), 65, "1 of 41 rows"),
        ("infinite", fine.clone() + &row(40, "[1,1e999,2]"), 65, "1 of 41 rows"),
        ("wrong width", fine.clone() + &row(40, "[1,2]"), 65, "2 numbers"),
        ("none", fine.clone() + "{\"item_id\":\"x\"}\n", 65, "`embedding` is missing"),
        ("one id, two items", fine.clone() + &row(3, "[9,9.5,9]"), 65, "repeat an item_id"),
        ("one item twice", fine.clone() + &row(3, "[3,9.5,1]"), 0, "40"),
    ];
    for (what, text, code, words) in cases {
        place.write("items.jsonl", text);
        for more in [&[][..], &["--stream", "--shard-items", "16"]] {
            let (found, said) = place.build("items.jsonl", more);
            assert_eq!(found, code, "{what} {more:?}: {said}");
            assert!(said.contains(words), "{what} {more:?}: expected `{words}` in: {said}");
        }
    }
    place.write("items.jsonl", fine.clone() + &row(40, "[1,2]"));
    for more in [&[][..], &["--stream"]] {
        let lax = ["--max-reject-fraction", "0.1"];
        assert_eq!(place.build("items.jsonl", &[&lax[..], more].concat()).0, 0);
    }
    // New items of another width do not get in; those of the right one do.
    place.write("items.jsonl", fine);
    let build = ["sids", "build", "--codebook-size", "4", "--levels", "2", "--items", "items.jsonl", "--out", "kept"];
    assert_eq!(place.run(&build).0, 0);
    place.write("wide.jsonl", row(77, "[1,2.5,3,4]"));
    let (code, said) = place.run(&["sids", "add", "kept", "--items", "wide.jsonl"]);
    assert!(code == 65 && said.contains("4 numbers") && said.contains('3'), "{code} {said}");
    place.write("new.jsonl", row(77, "[1,2.5,3]"));
    assert_eq!(place.run(&["sids", "add", "kept", "--items", "new.jsonl"]).0, 0);
}

#[test]
fn encoders_that_are_not_there_or_broken() {
    let place = Place::new();
    place.write("items.csv", rows(5));
    let folder = |name: &str, config: &str| {
        fs::create_dir(place.path(name)).unwrap();
        fs::write(place.path(name).join("config.json"), config).unwrap();
    };
    folder("gpt", "{\"model_type\":\"gpt2\"}");
    folder(
        "huge",
        "{\"model_type\":\"t5\",\"vocab_size\":9,\"d_model\":99999999,\"d_kv\":1,\"d_ff\":1,\"num_layers\":1,\"num_heads\":1,\"relative_attention_num_buckets\":8}",
    );
    fs::create_dir(place.path("bare")).unwrap();
    for (encoder, code, words) in [
        ("lsaa", 66, "expected lsa, hashed"),
        ("models/none", 66, "HF_HUB_OFFLINE"),
        ("models/none@v2", 66, "models/none@v2"),
        ("./models/none", 66, "org/name[@revision]"),
        ("bare", 66, "config.json"),
        ("gpt", 65, "gpt2"),
        ("huge", 65, "d_model"),
        ("http://127.0.0.1:9", 75, "attempts"),
    ] {
        for command in [&["embed", "--out", "v.npy"][..], &["sids", "build", "--out", "c"]] {
            // A server that is not there is waited for; once is enough.
            if code == 75 && command[0] == "embed" {
                continue;
            }
            let (found, said) = place.run(&[command, &["--items", "items.csv", "--encoder", encoder]].concat());
            assert_eq!(found, code, "{encoder}: {said}");
            assert!(said.contains(words), "{encoder}: expected `{words}` in: {said}");
        }
    }
    assert!(!Path::new(&place.path("c")).exists() && !place.path("v.npy").exists());
}
