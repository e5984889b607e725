//! A model whose requests run on a device where they can, and on the processor where they cannot.

use super::activations::Size;
use super::model::{DeviceModel, ItemTable};
use super::session::Session;
use crate::Result;
use crate::data::History;
use crate::generative::{Generator, Guidance, Search};
use crate::rqt::PackedRqt;
use crate::tiger::PackedTiger;
use beam::cuda::{Device, DeviceIndex, DeviceKernel, Numbers, guide_room};
use beam::{BeamConfig, Hypothesis, LiveMask, ScoreMode, Trace, Trie};
use candle_core::{Tensor, TensorId};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests that run at once; more are cut into such batches.
const MOST_REQUESTS: usize = 256;

/// Programs that are kept, the last ones used.
const PROGRAMS: usize = 24;

/// Numbers of guidance that all requests of a batch may take together: a gigabyte.
const GUIDE_ROOM: usize = 1 << 28;

/// A generative model on a device. What the device path does not know, traces and masks of a catalogue that has changed
/// since its index was built, is answered by the packed model.
pub struct DeviceGenerator<M> {
    packed: M,
    model: DeviceModel,
    device: Arc<dyn Device>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    index: Option<Arc<DeviceIndex>>,
    /// Of the last guided search, by the identity of its table on the host.
    guide: Option<(TensorId, ItemTable)>,
    /// Last used last, with the weight of their guidance.
    programs: Vec<(Size, BeamConfig, Option<f32>, Session)>,
}

impl DeviceGenerator<PackedTiger> {
    /// Copies the weights of `packed` to `device`.
    ///
    /// # Errors
    /// There is no room.
    pub fn tiger(packed: PackedTiger, device: &Arc<dyn Device>, numbers: Numbers) -> Result<Self> {
        let model = DeviceModel::tiger(packed.model(), device, numbers)?;
        Ok(Self { packed, model, device: Arc::clone(device), state: Mutex::default() })
    }
}

impl DeviceGenerator<PackedRqt> {
    /// Copies the weights of `packed` to `device`.
    ///
    /// # Errors
    /// There is no room.
    pub fn rqt(packed: PackedRqt, device: &Arc<dyn Device>, numbers: Numbers) -> Result<Self> {
        let model = DeviceModel::rqt(packed.model(), device, numbers)?;
        Ok(Self { packed, model, device: Arc::clone(device), state: Mutex::default() })
    }
}

impl<M> DeviceGenerator<M> {
    /// Kernels and bytes of the program that ran last.
    pub fn last_program(&self) -> Option<(usize, usize)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.programs.last().map(|(.., session)| (session.nodes(), session.bytes()))
    }

    /// Lists by the device.
    ///
    /// # Errors
    /// The search does not fit the device, or it fails.
    pub fn decode_on_device(
        &self,
        histories: &[History],
        trie: &Trie,
        config: &BeamConfig,
        live: &[LiveMask],
        guidance: Option<&Guidance>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        config.validate(trie.levels())?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let index = self.index(state, trie)?;
        self.put_guide(state, guidance)?;
        let weight = guidance.map(|guidance| guidance.weight);
        let guide_room = if guidance.is_some() { guide_room(trie).max(1) } else { 1 };
        let most = (GUIDE_ROOM / guide_room).clamp(1, MOST_REQUESTS);
        let mut lists = Vec::with_capacity(histories.len());
        for (histories, live) in histories.chunks(most).zip(live.chunks(most)) {
            let positions = histories.iter().map(|history| self.model.read(*history).len()).max().unwrap_or(1);
            let size = Size::of(histories.len(), positions.min(self.model.longest).max(1));
            let known = state.programs.iter().position(|(s, c, w, _)| (*s, *w) == (size, weight) && c == config);
            let program = if let Some(at) = known {
                state.programs.remove(at)
            } else {
                if state.programs.len() == PROGRAMS {
                    state.programs.remove(0);
                }
                let mut kernel = DeviceKernel::new(&self.device, &index, self.model.numbers, config)?;
                if let Some(weight) = weight {
                    kernel = kernel.guided(weight)?;
                }
                let guide = state.guide.as_ref().filter(|_| weight.is_some()).map(|(_, table)| table);
                let (widths, score) = (&config.widths, config.score);
                let session = loop {
                    match Session::new(&self.model, &self.device, &kernel, size, widths, score, guide) {
                        // The one that was used longest ago makes room.
                        Err(_) if !state.programs.is_empty() => drop(state.programs.remove(0)),
                        made => break made?,
                    }
                };
                (size, config.clone(), weight, session)
            };
            state.programs.push(program);
            if let Some((.., session)) = state.programs.last_mut() {
                lists.extend(session.run(&self.model, histories, live)?);
            }
        }
        Ok(lists)
    }

    /// Makes the table of `guidance` that of the device; programs of another one go.
    fn put_guide(&self, state: &mut State, guidance: Option<&Guidance>) -> Result<()> {
        let Some(guidance) = guidance else { return Ok(()) };
        if state.guide.as_ref().is_some_and(|(id, _)| *id == guidance.table.id()) {
            return Ok(());
        }
        state.programs.retain(|(_, _, weight, _)| weight.is_none());
        state.guide = None;
        state.guide = Some((guidance.table.id(), self.model.item_table(&guidance.table, &self.device)?));
        Ok(())
    }

    /// The index of `trie`: in the place of the one before where it has the same shape, so that programs stay valid.
    fn index(&self, state: &mut State, trie: &Trie) -> Result<Arc<DeviceIndex>> {
        if let Some(index) = &state.index {
            let now = index.trie();
            if now.is_same(trie) {
                return Ok(Arc::clone(index));
            }
            if now.spec() == trie.spec() {
                // Guided programs have room for a catalogue that grows a little, not for any.
                state.programs.retain(|(.., session)| session.holds(trie));
                index.replace(trie)?;
                return Ok(Arc::clone(index));
            }
        }
        state.programs.clear();
        let index = Arc::new(DeviceIndex::new(&self.device, trie)?);
        state.index = Some(Arc::clone(&index));
        Ok(index)
    }
}

/// Whether a device can answer the search as it is asked for.
fn fits(search: &Search, trace: bool) -> bool {
    let widest = search.config.widths.iter().copied().max().unwrap_or(0);
    !trace
        && search.guidance.is_none_or(|guidance| guidance.table.dims()[0] >= search.trie.bound())
        && widest <= beam::cuda::MAX_WIDTH
        && search.trie.levels() <= beam::cuda::MAX_LEVELS
        && !search.live.iter().any(LiveMask::is_changed)
}

impl<M: Generator> Generator for DeviceGenerator<M> {
    fn name(&self) -> &'static str {
        self.packed.name()
    }

    fn score_mode(&self) -> ScoreMode {
        self.packed.score_mode()
    }

    fn guide(&self) -> f32 {
        self.packed.guide()
    }

    fn guidance_table(&self) -> Result<Option<Tensor>> {
        self.packed.guidance_table()
    }

    fn decode(
        &self,
        histories: &[History],
        search: &Search,
        trace: Option<&mut Trace>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        if fits(search, trace.is_some()) {
            return self.decode_on_device(histories, search.trie, search.config, search.live, search.guidance);
        }
        self.packed.decode(histories, search, trace)
    }
}
