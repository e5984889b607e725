//! The cold-start harness: what is recommended of items that training has never seen.
//!
//! A [`protocol`] says which items are held out and who is asked; tokenizer, model and every count are fitted without
//! them; `methods` fill lists, `slots` joins warm and unseen items in one list, `score` counts. The text encoder is
//! fitted without them too where it is fitted at all (`lsa`).

mod methods;
pub mod protocol;
mod score;
mod slots;

use crate::content::Encoder;
use crate::error::{Fault, fault};
use crate::jobs::build_sids::{Content, build};
use crate::jobs::train::{Recorder, features, fit};
use crate::models::{Model, RunConfig};
use crate::report::ColdStartRow;
use crate::table::{Interactions, Items};
use anyhow::Result;
use protocol::{Held, Protocol};
use rqvae::{ItemIdx, QuantizerConfig, Vectors};
use score::RampRow;
use seqmodel::LeaveOneOut;
use serde::Serialize;
use std::path::Path;

/// How the harness is run.
#[derive(Debug, Clone)]
pub struct ColdConfig {
    /// Who is held out.
    pub protocol: Protocol,
    /// The tokenizer.
    pub quantizer: QuantizerConfig,
    /// The generative model.
    pub model: RunConfig,
    /// The dense model that it is compared with.
    pub dense: RunConfig,
    /// Beams, at least 50.
    pub beam: usize,
    /// Everything random follows from it.
    pub seed: u64,
}

/// Shares of a list for unseen items, at a length of ten; with the last of them as the paper's figure 5.
const EPSILONS: [f64; 4] = [0.0, 0.1, 0.2, 0.3];
/// Lengths, at a share of 0.1.
const LENGTHS: [usize; 4] = [5, 10, 20, 50];

/// What is written to `report.json`.
#[derive(Debug, Serialize)]
pub struct ColdReport {
    /// Name and parameters of the protocol.
    pub protocol: Protocol,
    /// What was left open by the papers, and how it is decided here.
    pub choices: Vec<&'static str>,
    /// Items that are held out.
    pub held_out_items: usize,
    /// Interactions that were deleted for it.
    pub removed_interactions: usize,
    /// Users asked.
    pub users: usize,
    /// Of them, users whose target is held out.
    pub users_with_unseen_target: usize,
    /// One row per method, share and length.
    pub rows: Vec<ColdStartRow>,
    /// 95 % half-widths of `recall_unseen`, row by row.
    pub ci95_recall_unseen: Vec<f64>,
    /// Recall at ten by how often training has seen the target.
    pub ramp: Vec<RampRow>,
    /// Seed.
    pub seed: u64,
    /// Encoder, tokenizer and model.
    pub encoder: String,
    /// The tokenizer's method.
    pub method: String,
    /// The generative model.
    pub model: String,
}

const CHOICES: [&str; 4] = [
    "a share of epsilon of k places is ceil(epsilon * k), at the end of the list",
    "unseen items under one matched prefix come in the order of a hash of their ids",
    "the fourth code of an unseen item is the next suffix among equal codes, unseen items after seen ones",
    "items of a user's history are left out of every list",
];

/// Content vectors by an encoder that has not read the held-out texts where it is fitted.
fn content(
    items: &Items,
    held: &Held,
    embeddings: Option<&Path>,
    encoder: Option<&str>,
    seed: u64,
) -> Result<(Vectors, String)> {
    let fitted = embeddings.is_none() && items.embeddings.is_none() && matches!(encoder, None | Some("lsa"));
    let source = if fitted {
        let known = (0..items.texts.len()).filter(|row| !held.unseen[*row]);
        let texts: Vec<String> = known.map(|row| items.texts[row].render()).collect();
        Content::Encoder(Box::new(Encoder::choose(None, &|| texts.clone(), seed)?))
    } else {
        Content::choose(items, embeddings, encoder, seed)?
    };
    Ok((source.vectors(items)?, source.name()))
}

/// Runs a protocol: fits everything without the held-out items, fills all lists, counts.
///
/// # Errors
/// Nobody's target is held out, or a held-out item is found where it must not be.
pub fn run(
    items: &Items,
    interactions: &Interactions,
    embeddings: Option<&Path>,
    encoder: Option<&str>,
    config: &ColdConfig,
    interrupted: &dyn Fn() -> bool,
) -> Result<ColdReport> {
    let held = config.protocol.hold(interactions, items.keys.len(), config.seed);
    held.check()?;
    let unseen = |item: ItemIdx| held.unseen[item.0 as usize];
    let cases = held.cases();
    let users_unseen = cases.iter().filter(|case| unseen(case.target)).count();
    if users_unseen == 0 {
        let message =
            format!("protocol {}: no user's target is an unseen item; nothing to measure", config.protocol.name());
        return Err(fault(Fault::BadData, message));
    }
    eprintln!(
        "protocol {}: {} of {} items held out, {} interactions removed, {} users asked, {users_unseen} of them for an unseen item",
        config.protocol.name(),
        held.items(),
        items.keys.len(),
        held.removed_interactions,
        cases.len()
    );
    let (content, encoder) = content(items, &held, embeddings, encoder, config.seed)?;
    let built = build(items, &content, &encoder, &config.quantizer, &|item| !unseen(item))?;
    let catalogue = &built.catalogue;
    let split = LeaveOneOut::new(&held.training);
    let train = |run: &RunConfig| -> Result<Model> {
        let model = Model::new(&run.model, &features(catalogue)?, config.seed)?;
        let mut recorder = Recorder::new(&format!("train {}", run.model.name()), run.train.max_epochs, None);
        let outcome = fit(&model, run, catalogue, &split, None, false, &mut recorder, interrupted)?;
        recorder.done(&format!("best val recall@10 {:.4}", outcome.best));
        Ok(model)
    };
    let (model, dense) = (train(&config.model)?, train(&config.dense)?);
    let longest = LENGTHS.iter().copied().max().unwrap_or(10);
    let methods = methods::all(&held, &cases, catalogue, &content, &model, &dense, config.beam, longest)?;
    let (mut rows, mut ramp, mut widths) = (Vec::new(), Vec::new(), Vec::new());
    for method in &methods {
        let mut add = |epsilon: Option<f64>, k: usize| {
            let lists = method.lists(epsilon.unwrap_or(0.0), k);
            let (row, width) = score::row(&method.name, epsilon, k, &cases, &lists, &unseen);
            rows.push(row);
            widths.push(width);
            if k == 10 && epsilon.is_none_or(|epsilon| epsilon == 0.1) {
                ramp.extend(score::ramp(&method.name, epsilon, &cases, &lists, &held.counts()));
            }
        };
        if method.unseen.is_some() {
            EPSILONS.iter().for_each(|epsilon| add(Some(*epsilon), 10));
            LENGTHS.iter().filter(|k| **k != 10).for_each(|k| add(Some(0.1), *k));
        } else {
            LENGTHS.iter().for_each(|k| add(None, *k));
        }
    }
    Ok(ColdReport {
        protocol: config.protocol,
        choices: CHOICES.to_vec(),
        held_out_items: held.items(),
        removed_interactions: held.removed_interactions,
        users: cases.len(),
        users_with_unseen_target: users_unseen,
        rows,
        ci95_recall_unseen: widths,
        ramp,
        seed: config.seed,
        encoder,
        method: catalogue.origin.method.clone(),
        model: config.model.model.name().to_string(),
    })
}
