//! A catalogue on a device: the arena as it is, behind a header that kernels are given the address of.
//!
//! Another catalogue is put in place by writing the header anew between two runs, so programs that were fixed before
//! stay valid. What was there before is kept until the next change, so that nothing runs on memory that is gone.

use super::args::{IndexHeader, LevelHeader, MAX_LEVELS, MaskHeader};
use super::device::{Device, Memory};
use crate::trie::{LiveNodes, Plain};
use crate::{Error, LiveMask, Result, Trie};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Masks of the whole catalogue that stay on the device.
const MASKS_KEPT: usize = 8;

/// The IDs and masks of a catalogue on a device.
pub struct DeviceIndex {
    device: Arc<dyn Device>,
    header: Memory,
    state: Mutex<State>,
}

struct State {
    trie: Trie,
    arena: Arc<Memory>,
    /// Of the trie before.
    previous: Option<Arc<Memory>>,
    /// Newest last.
    masks: VecDeque<(Arc<LiveNodes>, Arc<Memory>)>,
}

/// Masks of a batch as kernels read them.
pub(super) struct Masks {
    /// One per request.
    pub(super) headers: Vec<MaskHeader>,
    /// What they list.
    pub(super) pool: Vec<u32>,
    /// Keeps what headers point to.
    kept: Vec<Arc<Memory>>,
}

impl DeviceIndex {
    /// Copies `trie`.
    ///
    /// # Errors
    /// Its IDs are too long for a device, or there is no room.
    pub fn new(device: &Arc<dyn Device>, trie: &Trie) -> Result<Self> {
        let (arena, header) = upload(device, trie)?;
        let header = Memory::with(device, &[header])?;
        let state = State { trie: trie.clone(), arena, previous: None, masks: VecDeque::new() };
        Ok(Self { device: Arc::clone(device), header, state: Mutex::new(state) })
    }

    /// Puts `trie` in the place of what was there: what runs from now on sees it. Its IDs have the same shape.
    ///
    /// # Errors
    /// They have not, or there is no room; then nothing changes.
    pub fn replace(&self, trie: &Trie) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if trie.spec() != state.trie.spec() {
            let (expected, got) = (format!("{:?}", state.trie.spec()), format!("{:?}", trie.spec()));
            return Err(Error::shape("IDs of another catalogue", expected, got));
        }
        let (arena, header) = upload(&self.device, trie)?;
        self.device.write(self.header.address(), bytemuck::bytes_of(&header))?;
        state.trie = trie.clone();
        state.previous = Some(std::mem::replace(&mut state.arena, arena));
        state.masks.clear();
        Ok(())
    }

    /// The catalogue of now.
    pub fn trie(&self) -> Trie {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).trie.clone()
    }

    /// Where its header is, for as long as this lives.
    pub fn header(&self) -> u64 {
        self.header.address()
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.arena.bytes() + state.previous.as_ref().map_or(0, |previous| previous.bytes())
    }

    /// Masks as kernels read them; what concerns the whole catalogue is copied when it is new.
    ///
    /// # Errors
    /// A mask is of another trie, or about items that came or went since the trie was built, or there is no room.
    pub(super) fn masks(&self, live: &[LiveMask]) -> Result<Masks> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut masks = Masks { headers: Vec::with_capacity(live.len()), pool: Vec::new(), kept: Vec::new() };
        for mask in live {
            mask.check(&state.trie)?;
            let changed =
                || Error::shape("live mask on a device", "the items of the trie", "items added or removed since");
            let plain = mask.plain().ok_or_else(changed)?;
            let mut header = MaskHeader::default();
            if let Some(live) = plain.live.filter(|_| !plain.allow) {
                let memory = state.mask(&self.device, live)?;
                header.live = memory.address();
                masks.kept.push(memory);
            }
            masks.list(&mut header, &plain);
            masks.headers.push(header);
        }
        Ok(masks)
    }
}

impl State {
    fn mask(&mut self, device: &Arc<dyn Device>, live: &Arc<LiveNodes>) -> Result<Arc<Memory>> {
        if let Some((_, memory)) = self.masks.iter().find(|(known, _)| Arc::ptr_eq(known, live)) {
            return Ok(Arc::clone(memory));
        }
        let memory = Arc::new(Memory::with(device, &live.words())?);
        if self.masks.len() == MASKS_KEPT {
            self.masks.pop_front();
        }
        self.masks.push_back((Arc::clone(live), Arc::clone(&memory)));
        Ok(memory)
    }
}

impl Masks {
    /// Appends what `plain` lists and says in `header` where.
    fn list(&mut self, header: &mut MaskHeader, plain: &Plain) {
        let Some((nodes, items)) = plain.lists else { return };
        header.kind = if plain.allow { 2 } else { 1 };
        for (level, nodes) in nodes.iter().enumerate() {
            header.at[level] = self.pool.len() as u32;
            self.pool.extend_from_slice(nodes);
        }
        header.at[nodes.len()] = self.pool.len() as u32;
        self.pool.extend(items.iter().map(|item| item.0));
        header.at[nodes.len() + 1] = self.pool.len() as u32;
    }
}

fn upload(device: &Arc<dyn Device>, trie: &Trie) -> Result<(Arc<Memory>, IndexHeader)> {
    if trie.levels() > MAX_LEVELS {
        return Err(Error::shape("levels of an ID on a device", format!("{MAX_LEVELS} at most"), trie.levels()));
    }
    let arena = Arc::new(Memory::with(device, trie.words())?);
    Ok((Arc::clone(&arena), header(trie, arena.address())))
}

fn header(trie: &Trie, words: u64) -> IndexHeader {
    let (levels, items_at) = trie.arrays();
    let mut header = IndexHeader {
        words,
        items_at: items_at as u64,
        levels: trie.levels() as u32,
        items: trie.items_total() as u32,
        aliases: u32::from(trie.has_aliases()),
        ..IndexHeader::default()
    };
    let mut live_at = 0;
    for (level, arrays) in levels.iter().enumerate() {
        header.level[level] = LevelHeader {
            width: arrays.width,
            nodes: arrays.nodes as u32,
            wide: u32::from(arrays.codes.is_some_and(|(_, wide)| wide)),
            pad: 0,
            bases: arrays.bases as u64,
            distances: arrays.distances as u64,
            codes: arrays.codes.map_or(0, |(at, _)| at as u64),
        };
        header.live_at[level] = live_at;
        live_at += arrays.nodes.div_ceil(64) as u64;
    }
    header.live_at[levels.len()] = live_at;
    header
}
