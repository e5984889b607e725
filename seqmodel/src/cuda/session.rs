//! One size of request as a fixed program: the history is read, the trie searched, and nothing asked of the host between.
//!
//! Four kernels a block of the encoder, one for all keys and values of the memory, five a block and level of the decoder,
//! three for scores and selection. Where a library computes large products, norms in front of them become kernels of their
//! own; keys and values of the encoder keep to ours, which puts them where attention reads them. Rows of requests that are not there are computed along and looked at by no one.

use super::activations::{Activations, Size};
use super::launch;
use super::model::{DeviceModel, First, ItemTable};
use super::weights::{DeviceBlock, STEP};
use crate::data::History;
use crate::{Error, Result};
use beam::cuda::{
    ADD, AttendArgs, Device, DeviceBeams, DeviceKernel, DeviceScores, EmbedArgs, FLOATS, Feed, FeedForwardArgs, HEADS,
    HeadArgs, ItemScores, Launch, Memory, NORM, NormArgs, PathArgs, ProductArgs, RELU, Recorded, Region, record,
};
use beam::{BoxError, Hypothesis, LiveMask, ScoreMode, StepScorer, Trie};
use std::sync::Arc;

/// A program and its memory.
pub(super) struct Session {
    size: Size,
    recorded: Recorded,
    places: Activations,
    memory: Memory,
    device: Arc<dyn Device>,
}

/// Writes the kernels of a model down.
struct Writer<'a> {
    model: &'a DeviceModel,
    size: Size,
    places: &'a Activations,
    base: u64,
    library_rows: Option<u32>,
    levels: usize,
    /// Most rows of a level.
    beams: usize,
}

impl Session {
    pub(super) fn new(
        model: &DeviceModel,
        device: &Arc<dyn Device>,
        kernel: &DeviceKernel,
        size: Size,
        widths: &[usize],
        score: ScoreMode,
        guide: Option<&ItemTable>,
    ) -> Result<Self> {
        let (items, library_rows) = (guide.map_or(0, |guide| guide.matrix.rows as usize), device.library_rows());
        let places = Activations::new(model, size, widths, items, library_rows);
        let memory = Memory::new(device, places.plan.bytes())?;
        let beams = size.batch * widths.iter().copied().max().unwrap_or(1);
        let (base, levels) = (memory.address(), widths.len());
        let mut writer = Writer { model, size, places: &places, base, library_rows, levels, beams };
        let mut prologue = writer.encode();
        let scores = guide.map(|guide| {
            prologue.push(writer.item_scores(guide));
            let scores = writer.at(writer.places.item_scores);
            ItemScores { scores, pitch: guide.matrix.rows, items: guide.items as u32 }
        });
        let recorded = record(kernel, &mut writer, prologue, size.batch, score, scores.as_ref())?;
        Ok(Self { size, recorded, places, memory, device: Arc::clone(device) })
    }

    /// Kernels of the program.
    pub(super) fn nodes(&self) -> usize {
        self.recorded.nodes()
    }

    /// Whether it can be run over `trie`.
    pub(super) fn holds(&self, trie: &Trie) -> bool {
        self.recorded.holds(trie)
    }

    /// Bytes of activations and search.
    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes() + self.recorded.bytes()
    }

    /// Lists for histories that fit its size.
    pub(super) fn run(
        &mut self,
        model: &DeviceModel,
        histories: &[History],
        live: &[LiveMask],
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let Size { batch, seq } = self.size;
        let back = model.back();
        let mut ids = vec![u32::MAX; batch * seq];
        let (mut lengths, mut newest) = (vec![0u32; batch], vec![0u32; batch]);
        let (mut rows, mut back_lengths) = (vec![0u32; batch * back], vec![0u32; batch]);
        for (request, history) in histories.iter().enumerate() {
            let read = model.read(*history);
            if read.is_empty() || read.len() > seq {
                let expected = format!("1 to {seq} positions");
                return Err(Error::Mismatch { what: "history".into(), expected, found: read.len().to_string() });
            }
            ids[request * seq..][..read.len()].copy_from_slice(&read);
            lengths[request] = read.len() as u32;
            let last = request * seq + read.len() - 1;
            newest[request] = last as u32;
            back_lengths[request] = back.min(read.len()) as u32;
            for (i, row) in rows[request * back..][..back].iter_mut().enumerate() {
                *row = (last - i.min(read.len() - 1)) as u32;
            }
        }
        self.write(self.places.ids, &ids)?;
        self.write(self.places.lengths, &lengths)?;
        self.write(self.places.newest, &newest)?;
        self.write(self.places.back, &rows)?;
        self.write(self.places.back_lengths, &back_lengths)?;
        Ok(self.recorded.run(live)?)
    }

    fn write(&self, region: Region, values: &[u32]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        Ok(self.device.write(self.memory.address() + region.offset as u64, &bytes)?)
    }
}

impl Writer<'_> {
    fn at(&self, region: Region) -> u64 {
        self.base + region.offset as u64
    }

    fn product(&self, args: &ProductArgs) -> Launch {
        launch::product(self.model.numbers, args)
    }

    /// Whether products of so many rows are left to a library, norms taken apart.
    fn apart(&self, rows: usize) -> bool {
        self.library_rows.is_some_and(|least| rows >= least as usize)
    }

    /// Rows at `x` divided by their root mean square, and where they are then.
    fn normed(&self, x: u64, rows: usize, launches: &mut Vec<Launch>) -> u64 {
        let (pitch, y) = (self.model.dim_pad() as u32, self.at(self.places.normed));
        let (dim, rows) = (self.model.dim as u32, rows as u32);
        launches.push(launch::normalize(&NormArgs { x, row_ids: 0, y, rows, dim, ldx: pitch, ldy: pitch }));
        y
    }

    /// x += relu(norm(x) Wi) Wo over `rows` rows at `x`.
    fn feed_forward(&self, block: &DeviceBlock, x: u64, rows: usize, launches: &mut Vec<Launch>) {
        let (dim, pitch) = (self.model.dim as u32, self.model.dim_pad() as u32);
        let apart = self.apart(rows);
        if block.is_fused() && !apart {
            let args = FeedForwardArgs {
                x,
                wi: block.inner.address(),
                wo: block.outer.address(),
                rows: rows as u32,
                dim,
                dim_pad: pitch,
                hidden: block.hidden as u32,
                ldx: pitch,
                ldi: block.inner.pitch,
                ldo: block.outer.pitch,
                pad: 0,
            };
            launches.push(launch::feed_forward(self.model.numbers, &args));
            return;
        }
        let hidden = self.at(self.places.hidden);
        let (from, norm) = if apart { (self.normed(x, rows, launches), 0) } else { (x, NORM) };
        launches.push(self.product(&ProductArgs {
            x: from,
            w: block.inner.address(),
            y0: hidden,
            rows: rows as u32,
            inputs: block.inner.pitch,
            dim,
            cols: block.inner.rows,
            ldx: pitch,
            ldw: block.inner.pitch,
            ld0: block.hidden as u32,
            split: block.inner.rows,
            flags: norm | RELU,
            ..ProductArgs::default()
        }));
        launches.push(self.add(&block.outer, hidden, x, rows));
    }

    /// x += rows at `from` times the transpose of `matrix`.
    fn add(&self, matrix: &super::weights::Matrix, from: u64, x: u64, rows: usize) -> Launch {
        self.product(&ProductArgs {
            x: from,
            w: matrix.address(),
            y0: x,
            rows: rows as u32,
            inputs: matrix.pitch,
            dim: matrix.pitch,
            cols: matrix.rows,
            ldx: matrix.pitch,
            ldw: matrix.pitch,
            ld0: self.model.dim_pad() as u32,
            split: matrix.rows,
            flags: ADD,
            ..ProductArgs::default()
        })
    }

    /// From ids to states and the memory's keys and values.
    fn encode(&self) -> Vec<Launch> {
        let (model, places, Size { batch, seq }) = (self.model, self.places, self.size);
        let (dim, pitch, rows) = (model.dim as u32, model.dim_pad() as u32, (batch * seq) as u32);
        let states = self.at(places.states);
        let table = model.inputs.address();
        let embed = EmbedArgs { table, ids: self.at(places.ids), x: states, rows, same: 0, ldt: pitch, ldx: pitch };
        let mut launches = vec![launch::embed(&embed)];
        let seq_pad = seq.next_multiple_of(STEP);
        for block in &model.encoder {
            let heads = block.heads;
            let width = heads.width();
            let keys = self.at(places.keys_values);
            let values_at = (batch * width * seq_pad) as u64;
            launches.push(self.product(&ProductArgs {
                x: states,
                w: block.query_key_value.address(),
                y0: self.at(places.queries),
                y1: keys,
                values_at,
                rows,
                inputs: block.query_key_value.pitch,
                dim,
                cols: block.query_key_value.rows,
                ldx: pitch,
                ldw: block.query_key_value.pitch,
                ld0: width as u32,
                split: width as u32,
                flags: NORM | HEADS,
                seq: seq as u32,
                seq_pad: seq_pad as u32,
                heads: heads.count as u32,
                head_dim: heads.dim as u32,
                ..ProductArgs::default()
            }));
            let attend = AttendArgs {
                x: self.at(places.queries),
                wq: 0,
                keys,
                values: keys + values_at * model.numbers.bytes() as u64,
                bias: model.encoder_bias.table.address(),
                lengths: self.at(places.lengths),
                y: self.at(places.mixed),
                queries: seq as u32,
                seq: seq as u32,
                seq_pad: seq_pad as u32,
                heads: heads.count as u32,
                head_dim: heads.dim as u32,
                ldx: width as u32,
                ldw: 0,
                ldy: width as u32,
                dim,
                dim_pad: pitch,
                distances: model.encoder_bias.distances as u32,
                zero: model.encoder_bias.zero as u32,
                causal: u32::from(model.causal),
                pad: 0,
            };
            launches.push(launch::attend(model.numbers, &attend, batch as u32));
            launches.push(self.add(&block.output, self.at(places.mixed), states, rows as usize));
            self.feed_forward(block, states, rows as usize, &mut launches);
        }
        launches.extend(self.memory());
        launches
    }

    /// Keys and values of what the decoder attends to, for all its blocks.
    fn memory(&self) -> Option<Launch> {
        let (model, places) = (self.model, self.places);
        let (matrix, heads) = (model.memory.as_ref()?, model.decoder.first()?.heads);
        let seq = model.memory_seq(self.size);
        let each = (self.size.batch * heads.width() * seq.next_multiple_of(STEP)) as u64;
        Some(self.product(&ProductArgs {
            x: self.at(places.states),
            row_ids: if model.back() > 0 { self.at(places.back) } else { 0 },
            w: matrix.address(),
            y1: self.at(places.memory),
            layer_stride: 2 * each,
            values_at: each,
            rows: (self.size.batch * seq) as u32,
            inputs: matrix.pitch,
            dim: model.dim as u32,
            cols: matrix.rows,
            ldx: model.dim_pad() as u32,
            ldw: matrix.pitch,
            split: 0,
            flags: NORM | HEADS,
            seq: seq as u32,
            seq_pad: seq.next_multiple_of(STEP) as u32,
            heads: heads.count as u32,
            head_dim: heads.dim as u32,
            ..ProductArgs::default()
        }))
    }

    /// Scores of all items by the state after the newest position.
    fn item_scores(&self, guide: &ItemTable) -> Launch {
        let (model, places, matrix) = (self.model, self.places, &guide.matrix);
        self.product(&ProductArgs {
            x: self.at(places.states),
            row_ids: self.at(places.newest),
            w: matrix.address(),
            y0: self.at(places.item_scores),
            rows: self.size.batch as u32,
            inputs: matrix.pitch,
            dim: model.dim as u32,
            cols: matrix.rows,
            ldx: model.dim_pad() as u32,
            ldw: matrix.pitch,
            ld0: matrix.rows,
            split: matrix.rows,
            flags: NORM | FLOATS,
            ..ProductArgs::default()
        })
    }

    /// The decoder's first input.
    fn first(&self) -> Launch {
        let (model, places, batch) = (self.model, self.places, self.size.batch as u32);
        let (pitch, x) = (model.dim_pad() as u32, self.at(places.x));
        match &model.first {
            First::Row(same) => {
                let table = model.codes.address();
                launch::embed(&EmbedArgs { table, ids: 0, x, rows: batch, same: *same, ldt: pitch, ldx: pitch })
            }
            First::State(matrix) => self.product(&ProductArgs {
                x: self.at(places.states),
                row_ids: self.at(places.newest),
                w: matrix.address(),
                y0: x,
                rows: batch,
                inputs: matrix.pitch,
                dim: model.dim as u32,
                cols: matrix.rows,
                ldx: pitch,
                ldw: matrix.pitch,
                ld0: pitch,
                split: matrix.rows,
                flags: NORM | FLOATS,
                ..ProductArgs::default()
            }),
        }
    }

    /// One block of the decoder over the beams of a level.
    fn block(&self, at: usize, block: &DeviceBlock, level: usize, beams: &DeviceBeams, launches: &mut Vec<Launch>) {
        let (model, places) = (self.model, self.places);
        let (dim, pitch) = (model.dim as u32, model.dim_pad() as u32);
        let (heads, x, rows) = (block.heads, self.at(places.x), beams.batch() * beams.beams());
        let (width, number) = (heads.width(), model.numbers.bytes() as u64);
        let step_stride = (self.beams * 2 * width) as u64;
        let cache = self.at(places.cache) + (at * self.levels) as u64 * step_stride * number;
        let together = ProductArgs {
            x,
            w: block.query_key_value.address(),
            y0: self.at(places.queries),
            y1: cache + level as u64 * step_stride * number,
            rows: rows as u32,
            inputs: block.query_key_value.pitch,
            dim,
            cols: block.query_key_value.rows,
            ldx: pitch,
            ldw: block.query_key_value.pitch,
            ld0: width as u32,
            ld1: 2 * width as u32,
            split: width as u32,
            flags: NORM,
            ..ProductArgs::default()
        };
        if self.apart(rows) {
            let x = self.normed(x, rows, launches);
            let ProductArgs { w, y1, cols, ld1, split, ldw, .. } = together;
            let queries = ProductArgs { x, cols: split, flags: 0, ..together };
            let cols = cols - split;
            launches.push(self.product(&queries));
            let w = w + u64::from(split * ldw) * number;
            launches.push(self.product(&ProductArgs { w, y0: y1, cols, ld0: ld1, split: cols, ..queries }));
        } else {
            launches.push(self.product(&together));
        }
        let bias = model.decoder_bias.as_ref();
        let path = PathArgs {
            query: self.at(places.queries),
            cache,
            ancestors: beams.ancestors(),
            bias: bias.map_or(0, |bias| bias.table.address()),
            w: block.output.address(),
            x,
            step_stride,
            rows: rows as u32,
            step: level as u32,
            heads: heads.count as u32,
            head_dim: heads.dim as u32,
            ldw: block.output.pitch,
            ldx: pitch,
            cols: block.output.rows,
            distances: bias.map_or(0, |bias| bias.distances as u32),
            zero: bias.map_or(0, |bias| bias.zero as u32),
            pad: 0,
        };
        launches.push(launch::path(model.numbers, &path));
        if let (Some((query, output)), Some(_)) = (&block.memory, &model.memory) {
            let seq = model.memory_seq(self.size);
            let seq_pad = seq.next_multiple_of(STEP);
            let each = (self.size.batch * width * seq_pad) as u64 * number;
            let keys = self.at(places.memory) + at as u64 * 2 * each;
            let lengths = if model.back() > 0 { places.back_lengths } else { places.lengths };
            let attend = AttendArgs {
                x,
                wq: query.address(),
                keys,
                values: keys + each,
                bias: 0,
                lengths: self.at(lengths),
                y: self.at(places.mixed),
                queries: beams.beams() as u32,
                seq: seq as u32,
                seq_pad: seq_pad as u32,
                heads: heads.count as u32,
                head_dim: heads.dim as u32,
                ldx: pitch,
                ldw: query.pitch,
                ldy: width as u32,
                dim,
                dim_pad: pitch,
                ..AttendArgs::default()
            };
            launches.push(launch::attend(model.numbers, &attend, self.size.batch as u32));
            launches.push(self.add(output, self.at(places.mixed), x, rows));
        }
        self.feed_forward(block, x, rows, launches);
    }
}

impl StepScorer<DeviceKernel> for Writer<'_> {
    fn score(&mut self, level: usize, beams: &DeviceBeams) -> std::result::Result<DeviceScores, BoxError> {
        let model = self.model;
        let mut launches = if level == 0 { vec![self.first()] } else { Vec::new() };
        for (at, block) in model.decoder.iter().enumerate() {
            self.block(at, block, level, beams, &mut launches);
        }
        let (codes, pitch) = (model.level_codes[level], model.dim_pad() as u32);
        let (head, scores) = (&model.heads[level], beams.scores(codes));
        let args = HeadArgs {
            x: self.at(self.places.x),
            w: head.address(),
            logits: scores.logits,
            partials: scores.partials,
            rows: (beams.batch() * beams.beams()) as u32,
            inputs: head.pitch,
            dim: model.dim as u32,
            codes: codes as u32,
            ldx: pitch,
            ldw: head.pitch,
            ldl: scores.pitch,
            tiles: scores.tiles,
        };
        launches.push(launch::head(model.numbers, &args));
        if let Some(launch) = launches.iter().find(|launch| launch.shared > launch::MOST_SHARED) {
            return Err(format!("kernel `{}` needs {} bytes of shared memory", launch.kernel, launch.shared).into());
        }
        launches.into_iter().for_each(|launch| beams.push(launch));
        if level + 1 < self.levels {
            let (table, row) = (model.codes.address(), model.level_starts[level]);
            beams.feed(Feed { table, table_pitch: pitch, row, x: self.at(self.places.x), pitch });
        }
        Ok(scores)
    }
}
