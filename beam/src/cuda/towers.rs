//! The towers of an RQ-VAE on a device, while it is trained: see [`rqvae::Towers`] for the steps.
//!
//! Parameters, gradients and moments lie flat, in the places that the host has for them; activations lie row by row.
//! Several sources are columns of the same rows, which products read and write where they lie. Products are taken in f32,
//! as on the host: the latents choose codes, and choices near a border would fall otherwise in fewer bits.

use super::accelerator::below;
use super::device::{Device, Launch, Memory, Prepared, Program};
use super::kernels::Numbers;
use super::train::{
    AdamWArgs, BACK_ROWS, ElementArgs, FILL, FoldArgs, MatmulArgs, ON_TOP, TowerBiasArgs, TowerBiasBackArgs,
    TowerErrorArgs, adamw, element, fold, matmul, parts, squares, tower_bias, tower_bias_back, tower_error,
};
use crate::{Error, Result};
use rqvae::{AdamWConfig, TowerLayer, TowerPlan, TowerStart, Towers};
use std::sync::Arc;

/// Rows of a matrix on the device, `ld` numbers apart.
#[derive(Debug, Clone, Copy)]
struct View {
    at: u64,
    ld: usize,
}

impl View {
    fn of(memory: &Memory, ld: usize) -> Self {
        Self { at: memory.address(), ld }
    }

    fn column(self, first: usize) -> Self {
        Self { at: self.at + 4 * first as u64, ..self }
    }
}

/// What a step runs, one after the other.
#[derive(Debug, Clone, Copy)]
enum Part {
    Encode,
    Decode,
    Reconstruct,
    Back,
}

/// Towers, and all that a step leaves between its programs.
pub(super) struct DeviceTowers {
    device: Arc<dyn Device>,
    plan: TowerPlan,
    adamw: AdamWConfig,
    /// Steps of the optimiser so far.
    steps: i32,
    most_rows: usize,
    /// Rows that were encoded last.
    rows: usize,
    /// The parts of a step over as many rows as there can be, once they have been run. Other counts come too seldom to be
    /// worth fixing: the last of an epoch, or a new one every time where items draw partners.
    whole: [Option<Box<dyn Prepared>>; 4],
    weights: Memory,
    grads: Memory,
    first: Memory,
    second: Memory,
    x: Memory,
    scale: Memory,
    /// What every layer but the last puts out, for each tower.
    encoded: Vec<Vec<Memory>>,
    decoded: Vec<Vec<Memory>>,
    /// Latents of all sources side by side, and their gradient; empty with one source.
    joined: Memory,
    joined_flow: Memory,
    latents: Memory,
    quantized: Memory,
    /// Gradient of what is quantised on the way out, of the latents on the way in.
    flow: Memory,
    /// The reconstruction, then its gradient.
    reconstruction: Memory,
    /// Gradients between layers, from one to the other and back.
    between: [Memory; 2],
    scratch: Memory,
    partial: Memory,
}

impl DeviceTowers {
    pub(super) fn new(device: &Arc<dyn Device>, start: &TowerStart) -> Result<Self> {
        let TowerStart { plan, params, rows: most_rows, adamw } = *start;
        if params.len() != plan.parameters {
            return Err(Error::shape("parameters of the towers", plan.parameters, params.len()));
        }
        let widest = plan.parameters.max(most_rows).max(content_dim(plan));
        if most_rows == 0 || u32::try_from(widest).is_err() {
            let got = format!("{most_rows} rows, {} parameters", plan.parameters);
            return Err(Error::shape("sizes of the towers", "from 1 row on, below 2^32", got));
        }
        let numbers = |count: usize| Memory::new(device, 4 * count);
        let matrix = |cols: usize| numbers(most_rows * cols);
        let hidden = |towers: &[Vec<TowerLayer>]| -> Result<Vec<Vec<Memory>>> {
            let of = |layers: &Vec<TowerLayer>| -> Result<Vec<Memory>> {
                layers[..layers.len().saturating_sub(1)].iter().map(|layer| matrix(layer.output)).collect()
            };
            towers.iter().map(of).collect()
        };
        let layers = || plan.encoders.iter().chain(&plan.decoders).flatten().chain(&plan.fuse);
        let between = layers().map(|layer| layer.input).max().unwrap_or(0);
        let joined = if plan.fuse.is_some() { plan.encoders.len() * plan.latent_dim } else { 0 };
        let of_layer = |layer: &TowerLayer| {
            let TowerLayer { input, output, .. } = *layer;
            let products = parts(output as u32, input as u32, most_rows as u32) as usize * input * output;
            products.max(most_rows.div_ceil(BACK_ROWS as usize) * output)
        };
        let count = plan.parameters;
        let content = content_dim(plan);
        Ok(Self {
            weights: Memory::with(device, params)?,
            grads: numbers(count)?,
            first: numbers(count)?,
            second: numbers(count)?,
            x: matrix(content)?,
            scale: numbers(1)?,
            encoded: hidden(&plan.encoders)?,
            decoded: hidden(&plan.decoders)?,
            joined: matrix(joined)?,
            joined_flow: matrix(joined)?,
            latents: matrix(plan.latent_dim)?,
            quantized: matrix(plan.latent_dim)?,
            flow: matrix(plan.latent_dim)?,
            reconstruction: matrix(content)?,
            between: [matrix(between)?, matrix(between)?],
            scratch: numbers(layers().map(of_layer).max().unwrap_or(0))?,
            partial: numbers(squares((most_rows * content) as u64) as usize)?,
            device: Arc::clone(device),
            plan: plan.clone(),
            adamw,
            steps: 0,
            most_rows,
            rows: 0,
            whole: [None, None, None, None],
        })
    }

    /// Runs a part of a step over the rows of now.
    fn run(&mut self, part: Part) -> Result<()> {
        let whole = self.rows == self.most_rows;
        if let (true, Some(prepared)) = (whole, &mut self.whole[part as usize]) {
            return prepared.run();
        }
        let launches = match part {
            Part::Encode => self.record_encode(),
            Part::Decode => self.record_decode(),
            Part::Reconstruct => self.record_reconstruct(),
            Part::Back => self.record_back(),
        };
        let program = Program { numbers: Numbers::F32, launches };
        if !whole {
            return self.device.run(&program);
        }
        self.whole[part as usize].insert(self.device.prepare(&program)?).run()
    }

    fn record_encode(&self) -> Vec<Launch> {
        let mut launches = Vec::new();
        let plan = &self.plan;
        let x = View::of(&self.x, content_dim(plan));
        let latents = View::of(&self.latents, plan.latent_dim);
        let joined = View::of(&self.joined, plan.encoders.len() * plan.latent_dim);
        let mut from = 0;
        for (at, layers) in plan.encoders.iter().enumerate() {
            let to = if plan.fuse.is_some() { joined.column(at * plan.latent_dim) } else { latents };
            self.tower(&mut launches, layers, &self.encoded[at], x.column(from), to);
            from += plan.widths[at];
        }
        if let Some(fuse) = &plan.fuse {
            self.tower(&mut launches, std::slice::from_ref(fuse), &[], joined, latents);
        }
        launches
    }

    /// Decoders, what their layers but the last put out, and their first columns.
    fn decoders(&self) -> impl Iterator<Item = (&Vec<TowerLayer>, &Vec<Memory>, usize)> {
        let places = self.plan.widths.iter().scan(0, |from, width| Some(std::mem::replace(from, *from + width)));
        self.plan
            .decoders
            .iter()
            .zip(&self.decoded)
            .zip(places)
            .map(|((layers, outputs), from)| (layers, outputs, from))
    }

    fn record_reconstruct(&self) -> Vec<Launch> {
        let quantized = View::of(&self.quantized, self.plan.latent_dim);
        let reconstruction = View::of(&self.reconstruction, content_dim(&self.plan));
        let mut launches = Vec::new();
        for (layers, outputs, from) in self.decoders() {
            self.tower(&mut launches, layers, outputs, quantized, reconstruction.column(from));
        }
        launches
    }

    fn record_decode(&self) -> Vec<Launch> {
        let plan = &self.plan;
        let content = content_dim(plan);
        let (quantized, flow) = (View::of(&self.quantized, plan.latent_dim), View::of(&self.flow, plan.latent_dim));
        let reconstruction = View::of(&self.reconstruction, content);
        let clear = ElementArgs { y: self.grads.address(), count: plan.parameters as u64, ..ElementArgs::default() };
        let mut launches = vec![element(&ElementArgs { what: FILL, ..clear })];
        launches.extend(self.record_reconstruct());
        let count = (self.rows * content) as u64;
        launches.push(tower_error(&TowerErrorArgs {
            y: reconstruction.at,
            x: self.x.address(),
            scale: self.scale.address(),
            partial: self.partial.address(),
            count,
        }));
        for (at, (layers, outputs, from)) in self.decoders().enumerate() {
            // All decoders read the same latent: from the second on, their gradients come on top.
            let to = Some((flow, if at > 0 { ON_TOP } else { 0 }));
            self.tower_back(&mut launches, layers, outputs, quantized, reconstruction.column(from), to);
        }
        launches
    }

    fn record_back(&self) -> Vec<Launch> {
        let mut launches = Vec::new();
        let plan = &self.plan;
        let x = View::of(&self.x, content_dim(plan));
        let flow = View::of(&self.flow, plan.latent_dim);
        let side_by_side = plan.encoders.len() * plan.latent_dim;
        let joined_flow = View::of(&self.joined_flow, side_by_side);
        if let Some(fuse) = &plan.fuse {
            let joined = View::of(&self.joined, side_by_side);
            self.tower_back(&mut launches, std::slice::from_ref(fuse), &[], joined, flow, Some((joined_flow, 0)));
        }
        let mut from = 0;
        for (at, layers) in plan.encoders.iter().enumerate() {
            let g = if plan.fuse.is_some() { joined_flow.column(at * plan.latent_dim) } else { flow };
            self.tower_back(&mut launches, layers, &self.encoded[at], x.column(from), g, None);
            from += plan.widths[at];
        }
        launches
    }

    /// A tower forward, from `x` to `y`; `outputs` keep what its layers but the last put out.
    fn tower(&self, launches: &mut Vec<Launch>, layers: &[TowerLayer], outputs: &[Memory], x: View, y: View) {
        let mut input = x;
        for (i, layer) in layers.iter().enumerate() {
            let output = outputs.get(i).map_or(y, |memory| View::of(memory, layer.output));
            let (rows, cols, ld) = (self.rows as u32, layer.output as u32, output.ld as u32);
            let product =
                MatmulArgs { a: input.at, a_row: input.ld as u32, a_col: 1, m: rows, ..MatmulArgs::default() };
            let by = MatmulArgs { b: self.weight(layer), b_row: layer.input as u32, b_col: 1, n: cols, ..product };
            launches.push(matmul(Numbers::F32, MatmulArgs { c: output.at, ldc: ld, k: layer.input as u32, ..by }, 1));
            let relu = u32::from(i < outputs.len());
            let bias = self.weights.address() + 4 * layer.bias as u64;
            launches.push(tower_bias(&TowerBiasArgs { y: output.at, bias, rows, cols, ld, relu }));
            input = output;
        }
    }

    /// The way back of [`DeviceTowers::tower`], from the gradient `g` of its output, which stays, to those of its
    /// parameters and, where asked for, that of its input, with flags of the product that makes it.
    fn tower_back(
        &self,
        launches: &mut Vec<Launch>,
        layers: &[TowerLayer],
        outputs: &[Memory],
        x: View,
        mut g: View,
        to: Option<(View, u32)>,
    ) {
        for (i, layer) in layers.iter().enumerate().rev() {
            let TowerLayer { input: inputs, output: cols, .. } = *layer;
            let input = if i == 0 { x } else { View::of(&outputs[i - 1], inputs) };
            self.parameters_back(launches, layer, input, outputs.get(i), g);
            let target = if i == 0 { to } else { Some((View::of(&self.between[i % 2], inputs), 0)) };
            let Some((target, flags)) = target else { return };
            let product =
                MatmulArgs { a: g.at, a_row: g.ld as u32, a_col: 1, m: self.rows as u32, ..MatmulArgs::default() };
            let by = MatmulArgs { b: self.weight(layer), b_row: 1, b_col: inputs as u32, n: inputs as u32, ..product };
            let into = MatmulArgs { c: target.at, ldc: target.ld as u32, k: cols as u32, flags, ..by };
            launches.push(matmul(Numbers::F32, into, 1));
            g = target;
        }
    }

    /// From the gradient `g` of a layer's output to those of its weight and bias; `output` is what its ReLU let through.
    fn parameters_back(
        &self,
        launches: &mut Vec<Launch>,
        layer: &TowerLayer,
        input: View,
        output: Option<&Memory>,
        g: View,
    ) {
        let (rows, cols, inputs) = (self.rows as u32, layer.output as u32, layer.input as u32);
        let (scratch, grads) = (self.scratch.address(), self.grads.address());
        let y = output.map_or(0, Memory::address);
        let ld = g.ld as u32;
        launches.push(tower_bias_back(&TowerBiasBackArgs { g: g.at, y, partial: scratch, rows, cols, ld, pad: 0 }));
        let (bias, weight) = (grads + 4 * layer.bias as u64, grads + 4 * layer.weight as u64);
        let sums = FoldArgs { input: scratch, out: bias, stride: u64::from(cols), count: cols, parts: 0 };
        launches.push(fold(&FoldArgs { parts: rows.div_ceil(BACK_ROWS), ..sums }));
        let product = MatmulArgs { a: g.at, a_row: 1, a_col: ld, m: cols, ldc: inputs, ..MatmulArgs::default() };
        let by = MatmulArgs { b: input.at, b_row: 1, b_col: input.ld as u32, n: inputs, k: rows, ..product };
        let parts = parts(cols, inputs, rows);
        if parts == 1 {
            return launches.push(matmul(Numbers::F32, MatmulArgs { c: weight, flags: ON_TOP, ..by }, 1));
        }
        let count = cols * inputs;
        let product = matmul(Numbers::F32, MatmulArgs { c: scratch, part_stride: count.into(), ..by }, parts);
        let parts = product.grid[2];
        launches.push(product);
        launches.push(fold(&FoldArgs { input: scratch, out: weight, stride: count.into(), count, parts }));
    }

    fn weight(&self, layer: &TowerLayer) -> u64 {
        self.weights.address() + 4 * layer.weight as u64
    }

    fn read(&self, memory: &Memory, count: usize, to: &mut Vec<f32>) -> Result<()> {
        to.resize(count, 0.0);
        self.device.read(memory.address(), bytemuck::cast_slice_mut(to))
    }

    /// How many rows `numbers` are, where that many can be held.
    fn row_count(&self, what: &'static str, numbers: usize, dim: usize) -> Result<usize> {
        let rows = numbers / dim.max(1);
        if rows * dim == numbers && (1..=self.most_rows).contains(&rows) {
            return Ok(rows);
        }
        Err(Error::shape(what, format!("1 to {} rows of {dim}", self.most_rows), numbers))
    }

    /// Refuses latents that are not as many as were encoded last.
    fn check(&self, what: &'static str, found: usize) -> Result<()> {
        let expected = self.rows * self.plan.latent_dim;
        if self.rows > 0 && found == expected { Ok(()) } else { Err(Error::shape(what, expected, found)) }
    }

    fn encode_rows(&mut self, x: &[f32], latents: &mut Vec<f32>) -> Result<()> {
        let rows = self.row_count("content of the towers", x.len(), content_dim(&self.plan))?;
        self.rows = rows;
        self.device.write(self.x.address(), bytemuck::cast_slice(x))?;
        self.run(Part::Encode)?;
        self.read(&self.latents, rows * self.plan.latent_dim, latents)
    }

    fn decode_rows(&mut self, quantized: &[f32], scale: f32, flow: &mut Vec<f32>) -> Result<f64> {
        self.check("quantised latents", quantized.len())?;
        self.device.write(self.quantized.address(), bytemuck::cast_slice(quantized))?;
        self.device.write(self.scale.address(), bytemuck::bytes_of(&scale))?;
        self.run(Part::Decode)?;
        self.read(&self.flow, quantized.len(), flow)?;
        let mut partial = Vec::new();
        let count = squares((self.rows * content_dim(&self.plan)) as u64);
        self.read(&self.partial, count as usize, &mut partial)?;
        Ok(partial.iter().map(|x| f64::from(*x)).sum())
    }

    fn reconstruct_rows(&mut self, quantized: &[f32], x: &mut Vec<f32>) -> Result<()> {
        self.rows = self.row_count("quantised latents", quantized.len(), self.plan.latent_dim)?;
        self.device.write(self.quantized.address(), bytemuck::cast_slice(quantized))?;
        self.run(Part::Reconstruct)?;
        self.read(&self.reconstruction, self.rows * content_dim(&self.plan), x)?;
        // No step goes on from here.
        self.rows = 0;
        Ok(())
    }

    fn back_rows(&mut self, flow: &[f32]) -> Result<()> {
        self.check("gradient of the latents", flow.len())?;
        self.device.write(self.flow.address(), bytemuck::cast_slice(flow))?;
        self.run(Part::Back)
    }

    fn step(&mut self, learning_rate: f32) -> Result<()> {
        self.steps = self.steps.saturating_add(1);
        let (config, lr) = (&self.adamw, f64::from(learning_rate));
        let launches = vec![adamw(&AdamWArgs {
            w: self.weights.address(),
            g: self.grads.address(),
            m: self.first.address(),
            v: self.second.address(),
            average: 0,
            count: self.plan.parameters as u64,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            epsilon: config.epsilon as f32,
            decay: (1.0 - lr * config.weight_decay) as f32,
            rate: (lr / (1.0 - config.beta1.powi(self.steps))) as f32,
            root: (1.0 / (1.0 - config.beta2.powi(self.steps)).sqrt()) as f32,
            scale: 1.0,
            average_step: 0.0,
        })];
        self.device.run(&Program { numbers: Numbers::F32, launches })
    }

    fn all(&self, memory: &Memory) -> rqvae::Result<Vec<f32>> {
        let mut values = Vec::new();
        self.read(memory, self.plan.parameters, &mut values).map_err(below)?;
        Ok(values)
    }
}

impl Towers for DeviceTowers {
    fn encode(&mut self, x: &[f32], latents: &mut Vec<f32>) -> rqvae::Result<()> {
        self.encode_rows(x, latents).map_err(below)
    }

    fn decode(&mut self, quantized: &[f32], scale: f32, flow: &mut Vec<f32>) -> rqvae::Result<f64> {
        self.decode_rows(quantized, scale, flow).map_err(below)
    }

    fn reconstruct(&mut self, quantized: &[f32], x: &mut Vec<f32>) -> rqvae::Result<()> {
        self.reconstruct_rows(quantized, x).map_err(below)
    }

    fn back(&mut self, flow: &[f32]) -> rqvae::Result<()> {
        self.back_rows(flow).map_err(below)
    }

    fn update(&mut self, learning_rate: f32) -> rqvae::Result<()> {
        self.step(learning_rate).map_err(below)
    }

    fn gradients(&mut self) -> rqvae::Result<Vec<f32>> {
        self.all(&self.grads)
    }

    fn params(&mut self) -> rqvae::Result<Vec<f32>> {
        self.all(&self.weights)
    }
}

fn content_dim(plan: &TowerPlan) -> usize {
    plan.widths.iter().sum()
}
