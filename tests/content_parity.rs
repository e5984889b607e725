//! The frozen text encoder against a forward pass written out in plain loops, and against reference vectors.
//!
//! Reference: the vectors of all-MiniLM-L6-v2 that sentence-transformers gives, beside the Beauty data. That part runs
//! where the model's folder is named by `SIDREC_MINILM` and the data are there, and says so when it does not.

use rqvae::{ContentEncoder, TextEncoder};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const DIM: usize = 24;
const HEADS: usize = 3;
const LAYERS: usize = 2;
const INNER: usize = 40;
const POSITIONS: usize = 16;
const WORDS: [&str; 12] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "nail", "polish", "##es", "##s", "lamp", "oil"];
/// Sums of some hundred terms in 32 bits against 64 bits.
const TOLERANCE: f64 = 2e-5;
/// The reference vectors are stored in 16 bits.
const REFERENCE_TOLERANCE: f32 = 2e-3;

type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Random weights under the names of a Hugging Face BERT.
fn weights() -> Weights {
    let mut state = 7_u64;
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.6
    };
    let mut all = Weights::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let offset = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        let data = (0..shape.iter().product()).map(|_| number() + offset).collect();
        all.insert(name, (shape, data));
    };
    for (name, rows) in
        [("word_embeddings", WORDS.len()), ("position_embeddings", POSITIONS), ("token_type_embeddings", 2)]
    {
        add(format!("embeddings.{name}.weight"), vec![rows, DIM]);
    }
    add("embeddings.LayerNorm.weight".to_owned(), vec![DIM]);
    add("embeddings.LayerNorm.bias".to_owned(), vec![DIM]);
    for layer in 0..LAYERS {
        for (name, out, inner) in [
            ("attention.self.query", DIM, DIM),
            ("attention.self.key", DIM, DIM),
            ("attention.self.value", DIM, DIM),
            ("attention.output.dense", DIM, DIM),
            ("intermediate.dense", INNER, DIM),
            ("output.dense", DIM, INNER),
        ] {
            add(format!("encoder.layer.{layer}.{name}.weight"), vec![out, inner]);
            add(format!("encoder.layer.{layer}.{name}.bias"), vec![out]);
        }
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            add(format!("encoder.layer.{layer}.{name}.weight"), vec![DIM]);
            add(format!("encoder.layer.{layer}.{name}.bias"), vec![DIM]);
        }
    }
    all
}

fn write_folder(folder: &Path, weights: &Weights) -> anyhow::Result<()> {
    let config = json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": DIM, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0
    });
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    // Padding and truncation as some folders bring them: both must be overridden.
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": (0..4).map(special).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab}
    });
    fs::write(folder.join("config.json"), config.to_string())?;
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    let bytes: BTreeMap<&str, Vec<u8>> = weights
        .iter()
        .map(|(name, (_, data))| (name.as_str(), data.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let mut views = Vec::new();
    for (name, (shape, _)) in weights {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name.as_str()])?;
        views.push((name.as_str(), view));
    }
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    Ok(())
}

/// The same network, one text at a time, in 64 bits and plain loops.
struct Plain(Weights);

impl Plain {
    fn at(&self, name: &str) -> &[f32] {
        &self.0[name].1
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let bias = self.at(&format!("{name}.bias"));
        let rows = self.at(&format!("{name}.weight")).chunks_exact(x.len());
        rows.zip(bias)
            .map(|(row, b)| f64::from(*b) + row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>())
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let (weight, bias) = (self.at(&format!("{name}.weight")), self.at(&format!("{name}.bias")));
        x.iter()
            .zip(weight.iter().zip(bias))
            .map(|(x, (w, b))| (x - mean) / (variance + 1e-12).sqrt() * f64::from(*w) + f64::from(*b))
            .collect()
    }

    fn forward(&self, ids: &[usize]) -> Vec<Vec<f64>> {
        let row = |name: &str, id: usize| &self.at(&format!("embeddings.{name}.weight"))[id * DIM..][..DIM];
        let mut hidden: Vec<Vec<f64>> = ids
            .iter()
            .enumerate()
            .map(|(position, &id)| {
                let parts = row("word_embeddings", id)
                    .iter()
                    .zip(row("position_embeddings", position))
                    .zip(row("token_type_embeddings", 0));
                let sum: Vec<f64> = parts.map(|((a, b), c)| f64::from(*a) + f64::from(*b) + f64::from(*c)).collect();
                self.norm("embeddings.LayerNorm", &sum)
            })
            .collect();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let attended = self.attend(&name("attention.self"), &hidden);
            for (x, attended) in hidden.iter_mut().zip(attended) {
                let out = self.linear(&name("attention.output.dense"), &attended);
                *x = self.norm(&name("attention.output.LayerNorm"), &add(&out, x));
                let inner = self.linear(&name("intermediate.dense"), x);
                let inner: Vec<f64> = inner.into_iter().map(gelu).collect();
                let out = self.linear(&name("output.dense"), &inner);
                *x = self.norm(&name("output.LayerNorm"), &add(&out, x));
            }
        }
        hidden
    }

    fn attend(&self, name: &str, hidden: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let project = |part: &str| -> Vec<Vec<f64>> {
            hidden.iter().map(|x| self.linear(&format!("{name}.{part}"), x)).collect()
        };
        let (q, k, v) = (project("query"), project("key"), project("value"));
        let width = DIM / HEADS;
        q.iter()
            .map(|q| {
                let mut out = vec![0.0; DIM];
                for head in 0..HEADS {
                    let part = head * width..(head + 1) * width;
                    let scores: Vec<f64> = k
                        .iter()
                        .map(|k| {
                            let dot: f64 = q[part.clone()].iter().zip(&k[part.clone()]).map(|(a, b)| a * b).sum();
                            (dot / (width as f64).sqrt()).exp()
                        })
                        .collect();
                    let total: f64 = scores.iter().sum();
                    for (score, v) in scores.iter().zip(&v) {
                        for at in part.clone() {
                            out[at] += score / total * v[at];
                        }
                    }
                }
                out
            })
            .collect()
    }
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// x times the normal distribution function, its error function by its Taylor series.
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..120 {
        let n = f64::from(n);
        term *= -z * z / n;
        sum += term / (2.0 * n + 1.0);
    }
    0.5 * x * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI)
}

/// Texts of different lengths, with their tokens worked out by hand; the last one is cut at 16 positions.
fn samples() -> Vec<(String, Vec<usize>)> {
    vec![
        ("Red nail polish".to_owned(), vec![2, 4, 6, 7, 3]),
        ("lamps".to_owned(), vec![2, 10, 9, 3]),
        ("BLUE polishes oil unheard".to_owned(), vec![2, 5, 7, 8, 11, 1, 3]),
        (String::new(), vec![2, 3]),
        ("oil ".repeat(30), [vec![2], vec![11; 14], vec![3]].concat()),
    ]
}

#[test]
fn a_small_bert_equals_plain_loops() {
    let dir = tempfile::tempdir().unwrap();
    let weights = weights();
    write_folder(dir.path(), &weights).unwrap();
    let plain = Plain(weights);
    let texts: Vec<String> = samples().into_iter().map(|(text, _)| text).collect();

    let encoder = TextEncoder::load(dir.path()).unwrap();
    assert_eq!(encoder.dim(), DIM);
    let mut done = 0;
    let mean = encoder.encode(&texts, &mut |n| done = n).unwrap();
    assert_eq!(done, texts.len());

    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    let modules = json!([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    ]);
    let pooling =
        json!({"word_embedding_dimension": DIM, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false});
    fs::write(dir.path().join("modules.json"), modules.to_string()).unwrap();
    fs::write(dir.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    let cls = TextEncoder::load(dir.path()).unwrap().encode(&texts, &mut |_| ()).unwrap();

    for (row, (text, ids)) in samples().into_iter().enumerate() {
        let hidden = plain.forward(&ids);
        close(&format!("cls of {text:?}"), cls.row(row), &hidden[0]);
        let mut pooled = hidden[1..].iter().fold(hidden[0].clone(), |sum, x| add(&sum, x));
        let norm = pooled.iter().map(|x| x * x).sum::<f64>().sqrt();
        for x in &mut pooled {
            *x /= norm;
        }
        close(&format!("mean of {text:?}"), mean.row(row), &pooled);
    }
}

fn close(what: &str, found: &[f32], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < TOLERANCE, "{what}: {found} is not {expected}");
    }
}

/// T5 with both feed-forwards, RoBERTa, and every step that folders of sentence-transformers have.
///
/// Reference: `tests/reference/sentence_t5.py`.
#[test]
fn encoder_folders_equal_the_python_libraries() {
    let folders = tests::root().join("tests/reference/sentence_t5");
    for (name, kind, dim) in [("relu", "t5", 5), ("gated", "t5", 5), ("roberta", "bert", 12)] {
        let folder = folders.join(name);
        let encoder = TextEncoder::load(&folder).unwrap();
        assert_eq!((encoder.name(), encoder.dim()), (format!("{kind}:{name}"), dim));
        let golden: Value = serde_json::from_slice(&fs::read(folder.join("vectors.json")).unwrap()).unwrap();
        let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
        let expected: Vec<Vec<f64>> = serde_json::from_value(golden["vectors"].clone()).unwrap();
        let found = encoder.encode(&texts, &mut |_| ()).unwrap();
        assert_eq!(found.rows(), expected.len());
        for (row, text) in texts.iter().enumerate() {
            close(&format!("{name} of {text:?}"), found.row(row), &expected[row]);
            // Alone, a text has the bits that it has among others.
            let alone = encoder.encode(std::slice::from_ref(text), &mut |_| ()).unwrap();
            assert_eq!(alone.row(0), found.row(row), "{name} of {text:?}");
        }
        // The digest is that of the files which were read, and of nothing else.
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&folder, copy.path());
        fs::write(copy.path().join("README.md"), "other").unwrap();
        assert_eq!(TextEncoder::load(copy.path()).unwrap().digest(), encoder.digest());
        let config = copy.path().join("config.json");
        fs::write(&config, fs::read_to_string(&config).unwrap() + "\n").unwrap();
        assert_ne!(TextEncoder::load(copy.path()).unwrap().digest(), encoder.digest());
        // Every flipped byte of the weights' header is an error or changes no shape, never a panic.
        let weights = copy.path().join("model.safetensors");
        let whole = fs::read(&weights).unwrap();
        for at in (0..600.min(whole.len())).step_by(11) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&weights, bytes).unwrap();
            if let Err(error) = TextEncoder::load(copy.path()) {
                assert!(error.to_string().contains("model.safetensors"), "{error}");
            }
        }
    }
}

#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &place);
        } else {
            fs::copy(&path, &place).unwrap();
        }
    }
}

#[test]
fn minilm_equals_its_reference_vectors() {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/beauty");
    let (items, vectors) = (data.join("items.jsonl.gz"), data.join("minilm-l6-v2.f16.npy"));
    let folder = std::env::var_os("SIDREC_MINILM").map(PathBuf::from);
    let Some(folder) = folder.filter(|_| items.is_file() && vectors.is_file()) else {
        eprintln!("SKIPPED: parity with MiniLM needs SIDREC_MINILM=<model folder> and {}", data.display());
        return;
    };
    let items = tools::table::read_items(&items, &tools::table::ReadOptions::default()).unwrap();
    let reference = tools::table::read_vectors(&vectors, &items.keys).unwrap();
    let rows: Vec<usize> = (0..items.keys.len()).step_by(items.keys.len() / 64).take(64).collect();
    let texts: Vec<String> = rows.iter().map(|&row| items.texts[row].render()).collect();
    let encoder = TextEncoder::load(&folder).unwrap();
    let found = encoder.encode(&texts, &mut |_| ()).unwrap();
    let mut worst = 0.0_f32;
    for (at, &row) in rows.iter().enumerate() {
        for (a, b) in found.row(at).iter().zip(reference.row(row)) {
            worst = worst.max((a - b).abs());
        }
    }
    eprintln!("MiniLM: largest difference of {} texts {worst:e}", rows.len());
    assert!(worst < REFERENCE_TOLERANCE, "{worst}");
}
