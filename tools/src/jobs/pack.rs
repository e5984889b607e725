//! A trained model and its catalogue, small enough to hand on: best weights in 16 bits, no optimiser, no encoder.

use crate::catalogue::{Catalogue, require_empty};
use crate::error::{cannot_create, input_missing};
use crate::jobs::train;
use anyhow::{Context, Result};
use candle_core::DType;
use rqvae::CheckpointDir;
use seqmodel::nn::{load_parameters, save_parameters};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Writes `out/run` and `out/catalogue`; titles only where `titles` is set.
///
/// # Errors
/// The run does not belong to the catalogue, or `out` is not empty.
pub fn pack(run: &Path, catalogue_dir: &Path, out: &Path, titles: bool) -> Result<()> {
    require_empty(out)?;
    let catalogue = Catalogue::open(catalogue_dir)?;
    // Loading checks that the run was trained on this catalogue.
    train::load(run, &catalogue)?;
    let best = CheckpointDir::open(run)
        .best()?
        .ok_or_else(|| input_missing(&run.join("best")).context("pack a run that has been validated"))?;
    let step = |state: &serde_json::Value| state["step"].as_u64();
    let state = best.read("state.json")?;
    let step = step(&serde_json::from_slice(&state)?).with_context(|| best.file("state.json").display().to_string())?;
    let weights = load_parameters(&best.read("model.safetensors")?, &best.file("model.safetensors"))?;
    let halved = weights.into_iter().map(|(name, tensor)| {
        // Whole numbers are counts and names of items, which 16 bits do not hold.
        let whole = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.fract() == 0.0);
        Ok((name, if whole { tensor } else { tensor.to_dtype(DType::F16)? }))
    });
    let weights: BTreeMap<_, _> = halved.collect::<Result<_>>()?;
    let packed = out.join("run");
    fs::create_dir_all(&packed).map_err(|e| cannot_create(&packed, e))?;
    for name in ["config.toml", "metrics.jsonl", "counts.safetensors"] {
        if run.join(name).is_file() {
            fs::copy(run.join(name), packed.join(name)).map_err(|e| cannot_create(&packed.join(name), e))?;
        }
    }
    let files = [
        ("model.safetensors", save_parameters(weights)?),
        ("model.toml", best.read("model.toml")?),
        ("state.json", state),
    ];
    CheckpointDir::create(&packed)?.save(step, &files, true)?;
    catalogue.write_packed(&out.join("catalogue"), titles)?;
    eprintln!("written: {} and {}", packed.display(), out.join("catalogue").display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{DemoConfig, generate};
    use crate::jobs::build_sids::{Content, build};
    use crate::models::RunConfig;
    use crate::table::{ReadOptions, find_in, read_interactions, read_items};
    use rqvae::QuantizerConfig;
    use seqmodel::Query;

    #[test]
    fn a_packed_model_recommends_the_same() -> Result<()> {
        packs("rqt", 300)
    }

    /// More items than 16 bits tell apart as numbers.
    #[test]
    fn a_packed_hybrid_remembers_the_same() -> Result<()> {
        packs("hybrid", 2100)
    }

    fn packs(model: &str, items: usize) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        crate::demo::write(&at("data"), &generate(&DemoConfig { items, users: 80, seed: 3 }))?;
        let options = ReadOptions::default();
        let items = read_items(&find_in(&at("data"), "items")?, &options)?;
        let interactions = read_interactions(&find_in(&at("data"), "interactions")?, &items.keys, &options)?;
        let source = Content::choose(&items, None, Some("hashed"), 1)?;
        let quantizer = QuantizerConfig { levels: 2, codebook_size: 8, ..QuantizerConfig::default() };
        let built = build(&items, &source.vectors(&items)?, "hashed", &quantizer, &|_| true)?;
        built
            .catalogue
            .write(&at("catalogue"), &built.residual_norms, built.quantizer.as_ref(), &|at| source.save(at))?;
        let mut config = RunConfig::preset(model, "quick")?;
        (config.train.max_epochs, config.train.eval_users) = (1, 20);
        let interrupt = crate::interrupt::Interrupt::install()?;
        train::run(&config, &built.catalogue, &interactions, &at("run"), false, None, &interrupt)?;

        pack(&at("run"), &at("catalogue"), &at("packed"), false)?;
        let small = Catalogue::open(&at("packed").join("catalogue"))?;
        anyhow::ensure!(small.cards.iter().all(|card| card.title.is_empty()));
        let history = interactions.histories.of(0);
        let list = |run: &Path, catalogue: &Catalogue| -> Result<Vec<u32>> {
            let trained = train::load(run, catalogue)?;
            let retriever = trained.model.retriever(&catalogue.trie, 20, catalogue.keys.tie_hash())?;
            let found = retriever.retrieve(&[Query { history, user: None, exclude: history }], 5)?;
            Ok(found[0].iter().map(|scored| scored.item.0).collect())
        };
        let (full, packed) = (list(&at("run"), &built.catalogue)?, list(&at("packed").join("run"), &small)?);
        // 16 bits may swap neighbours that are nearly equal, so sets are compared, with one miss allowed.
        anyhow::ensure!(full.iter().filter(|item| packed.contains(item)).count() >= 4, "{full:?} {packed:?}");
        anyhow::ensure!(pack(&at("run"), &at("catalogue"), &at("packed"), true).is_err());
        // What is packed may be packed again.
        pack(&at("packed").join("run"), &at("packed").join("catalogue"), &at("again"), false)?;
        anyhow::ensure!(list(&at("again").join("run"), &small)? == packed);
        Ok(())
    }
}
