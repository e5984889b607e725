//! Encoder and decoder of content from one or several sources.
//!
//! A source is a range of columns with towers of its own. The latents of several sources, side by side, are projected
//! to one; every source is decoded from that same latent.
//!
//! Shapes: content (rows, sum of the widths) -> latent (rows, `latent_dim`), and back.
//! Papers: Rajput et al. 2023 (TIGER), sec. 3.1, for one source; He et al. 2025 (PLUM), sec. 3.1, for several.

use super::mlp::{Mlp, Tape, TowerLayer};
use rand_chacha::ChaCha8Rng;

/// What a forward pass leaves for the backward pass.
#[derive(Debug, Default)]
pub(super) struct TowerTape {
    /// Columns of every source, where there are several.
    columns: Vec<Vec<f32>>,
    towers: Vec<Tape>,
    /// Latents side by side before the projection, reconstructions side by side behind the decoder.
    joined: Vec<f32>,
    fused: Tape,
    part: Vec<f32>,
}

/// Content to latent.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    widths: Vec<usize>,
    latent_dim: usize,
    towers: Vec<Mlp>,
    fuse: Option<Mlp>,
}

/// Latent to content.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    widths: Vec<usize>,
    towers: Vec<Mlp>,
}

impl Encoder {
    /// Towers for sources of `widths`, their parameters from `offset` on, which moves behind them.
    pub(super) fn new(widths: &[usize], hidden: &[usize], latent_dim: usize, offset: &mut usize) -> Self {
        let towers = widths
            .iter()
            .map(|&width| {
                let layers: Vec<usize> = [width].iter().chain(hidden).chain([&latent_dim]).copied().collect();
                Mlp::new(&layers, offset)
            })
            .collect();
        let fuse = (widths.len() > 1).then(|| Mlp::new(&[widths.len() * latent_dim, latent_dim], offset));
        Self { widths: widths.to_vec(), latent_dim, towers, fuse }
    }

    /// Widths of the sources, the layers of each one's tower, and the projection of several latents to one.
    pub(super) fn layers(&self) -> (Vec<usize>, Vec<Vec<TowerLayer>>, Option<TowerLayer>) {
        let fuse = self.fuse.as_ref().and_then(|fuse| fuse.layers().first().copied());
        (self.widths.clone(), self.towers.iter().map(|tower| tower.layers().to_vec()).collect(), fuse)
    }

    pub(super) fn init(&self, params: &mut [f32], rng: &mut ChaCha8Rng) {
        self.towers.iter().chain(&self.fuse).for_each(|tower| tower.init(params, rng));
    }

    /// Name, shape and place of every parameter.
    pub(super) fn parameters(&self) -> Vec<(String, Vec<usize>, usize)> {
        let mut all = named("encoder", &self.towers);
        all.extend(self.fuse.iter().flat_map(|fuse| fuse.parameters("encoder.fuse")));
        all
    }

    /// (rows, content) -> (rows, `latent_dim`).
    pub(super) fn forward<'a>(&self, params: &[f32], x: &[f32], rows: usize, tape: &'a mut TowerTape) -> &'a [f32] {
        tape.towers.resize_with(self.towers.len(), Tape::new);
        let Some(fuse) = &self.fuse else {
            self.towers[0].forward(params, x, rows, &mut tape.towers[0]);
            return last(&tape.towers[0]);
        };
        tape.columns.resize_with(self.towers.len(), Vec::new);
        tape.joined.resize(rows * self.towers.len() * self.latent_dim, 0.0);
        let (all, latents) = (self.widths.iter().sum(), self.towers.len() * self.latent_dim);
        let mut from = 0;
        for (at, (tower, &width)) in self.towers.iter().zip(&self.widths).enumerate() {
            take_columns(x, all, from, width, &mut tape.columns[at]);
            tower.forward(params, &tape.columns[at], rows, &mut tape.towers[at]);
            put_columns(last(&tape.towers[at]), self.latent_dim, &mut tape.joined, latents, at * self.latent_dim);
            from += width;
        }
        fuse.forward(params, &tape.joined, rows, &mut tape.fused);
        last(&tape.fused)
    }

    /// From the gradient of the latent in `flow`, which is used up, to those of the parameters in `grads`.
    #[expect(clippy::too_many_arguments, reason = "buffers are the caller's, so that a step allocates nothing")]
    pub(super) fn backward(
        &self,
        params: &[f32],
        x: &[f32],
        rows: usize,
        tape: &mut TowerTape,
        flow: &mut Vec<f32>,
        spare: &mut Vec<f32>,
        grads: &mut [f32],
    ) {
        let Some(fuse) = &self.fuse else {
            return self.towers[0].backward(params, x, rows, &tape.towers[0], flow, spare, grads, false);
        };
        fuse.backward(params, &tape.joined, rows, &tape.fused, flow, spare, grads, true);
        let latents = self.towers.len() * self.latent_dim;
        let TowerTape { columns, towers, part, joined, .. } = tape;
        joined.clone_from(flow);
        for (at, tower) in self.towers.iter().enumerate() {
            take_columns(joined, latents, at * self.latent_dim, self.latent_dim, part);
            tower.backward(params, &columns[at], rows, &towers[at], part, spare, grads, false);
        }
    }
}

impl Decoder {
    /// Towers that mirror those of [`Encoder::new`].
    pub(super) fn new(widths: &[usize], hidden: &[usize], latent_dim: usize, offset: &mut usize) -> Self {
        let towers = widths
            .iter()
            .map(|&width| {
                let layers: Vec<usize> =
                    [latent_dim].iter().chain(hidden.iter().rev()).chain([&width]).copied().collect();
                Mlp::new(&layers, offset)
            })
            .collect();
        Self { widths: widths.to_vec(), towers }
    }

    /// The layers of each source's tower.
    pub(super) fn layers(&self) -> Vec<Vec<TowerLayer>> {
        self.towers.iter().map(|tower| tower.layers().to_vec()).collect()
    }

    pub(super) fn init(&self, params: &mut [f32], rng: &mut ChaCha8Rng) {
        self.towers.iter().for_each(|tower| tower.init(params, rng));
    }

    /// Name, shape and place of every parameter.
    pub(super) fn parameters(&self) -> Vec<(String, Vec<usize>, usize)> {
        named("decoder", &self.towers)
    }

    /// (rows, `latent_dim`) -> (rows, content).
    pub(super) fn forward<'a>(&self, params: &[f32], z: &[f32], rows: usize, tape: &'a mut TowerTape) -> &'a [f32] {
        tape.towers.resize_with(self.towers.len(), Tape::new);
        let all: usize = self.widths.iter().sum();
        let mut from = 0;
        for (at, (tower, &width)) in self.towers.iter().zip(&self.widths).enumerate() {
            tower.forward(params, z, rows, &mut tape.towers[at]);
            if self.towers.len() > 1 {
                tape.joined.resize(rows * all, 0.0);
                put_columns(last(&tape.towers[at]), width, &mut tape.joined, all, from);
            }
            from += width;
        }
        self.output(tape)
    }

    /// The reconstruction of the last forward pass.
    pub(super) fn output<'a>(&self, tape: &'a TowerTape) -> &'a [f32] {
        if self.towers.len() > 1 { &tape.joined } else { tape.towers.first().map_or(&[], |tape| last(tape)) }
    }

    /// From the gradient of the reconstruction in `flow` to those of the parameters in `grads`, and that of the latent,
    /// left in `flow`.
    #[expect(clippy::too_many_arguments, reason = "buffers are the caller's, so that a step allocates nothing")]
    pub(super) fn backward(
        &self,
        params: &[f32],
        z: &[f32],
        rows: usize,
        tape: &mut TowerTape,
        flow: &mut Vec<f32>,
        spare: &mut Vec<f32>,
        grads: &mut [f32],
    ) {
        if let [tower] = &self.towers[..] {
            return tower.backward(params, z, rows, &tape.towers[0], flow, spare, grads, true);
        }
        let all: usize = self.widths.iter().sum();
        let mut sum = vec![0.0; z.len()];
        let mut from = 0;
        for (at, (tower, &width)) in self.towers.iter().zip(&self.widths).enumerate() {
            take_columns(flow, all, from, width, &mut tape.part);
            tower.backward(params, z, rows, &tape.towers[at], &mut tape.part, spare, grads, true);
            sum.iter_mut().zip(&tape.part).for_each(|(sum, g)| *sum += g);
            from += width;
        }
        *flow = sum;
    }
}

fn last(tape: &Tape) -> &[f32] {
    tape.last().map_or(&[], Vec::as_slice)
}

/// One tower keeps the plain name, several are numbered.
fn named(what: &str, towers: &[Mlp]) -> Vec<(String, Vec<usize>, usize)> {
    match towers {
        [tower] => tower.parameters(what),
        _ => towers.iter().enumerate().flat_map(|(at, tower)| tower.parameters(&format!("{what}.{at}"))).collect(),
    }
}

/// Columns `from..from + width` of `x` (rows, all) into `part` (rows, width).
fn take_columns(x: &[f32], all: usize, from: usize, width: usize, part: &mut Vec<f32>) {
    part.clear();
    x.chunks_exact(all).for_each(|row| part.extend_from_slice(&row[from..from + width]));
}

/// `part` (rows, width) into columns `from..from + width` of `x` (rows, all).
fn put_columns(part: &[f32], width: usize, x: &mut [f32], all: usize, from: usize) {
    for (row, part) in x.chunks_exact_mut(all).zip(part.chunks_exact(width)) {
        row[from..from + width].copy_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_there_and_back() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut part = Vec::new();
        take_columns(&x, 3, 1, 2, &mut part);
        assert_eq!(part, [2.0, 3.0, 5.0, 6.0]);
        let mut back = [0.0; 6];
        put_columns(&part, 2, &mut back, 3, 0);
        assert_eq!(back, [2.0, 3.0, 0.0, 5.0, 6.0, 0.0]);
    }

    #[test]
    fn a_source_reaches_its_own_tower_alone() {
        let mut offset = 0;
        let encoder = Encoder::new(&[2, 3], &[4], 2, &mut offset);
        let mut params = vec![0.0; offset];
        encoder.init(&mut params, &mut crate::SeededRng::new(1).stream("towers"));
        let mut tape = TowerTape::default();
        let base = encoder.forward(&params, &[0.3, -0.2, 0.5, 0.1, -0.7], 1, &mut tape).to_vec();
        let towers: Vec<Vec<f32>> = tape.towers.iter().map(|tape| last(tape).to_vec()).collect();
        let other = encoder.forward(&params, &[0.3, -0.2, 0.5, 0.1, 0.9], 1, &mut tape).to_vec();
        assert_ne!(base, other);
        assert_eq!(towers[0], last(&tape.towers[0]));
        assert_ne!(towers[1], last(&tape.towers[1]));
    }
}
