//! Bytes as a catalogue, masks, scores and widths: the search against brute force.

use beam::{BeamConfig, CpuKernel, Hypothesis, LiveMask, PrefixScorer, ScoreMode, SimdKernel, Trie, oracle, search};
use rqvae::{Code, ItemIdx, SidSpec, SidTable, mix};

struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn next(&mut self) -> Option<usize> {
        self.0.next().map(|byte| usize::from(*byte))
    }

    /// 1 to `most`.
    fn size(&mut self, most: usize) -> Option<usize> {
        self.next().map(|byte| 1 + byte % most)
    }
}

/// Whether `data` is long enough to be a case, which then holds.
///
/// # Panics
/// When a search differs from brute force.
pub(crate) fn run(data: &[u8]) -> bool {
    case(&mut Bytes(data.iter())).is_some()
}

fn case(bytes: &mut Bytes) -> Option<()> {
    let levels = bytes.size(4)?;
    let mut sizes = Vec::new();
    for _ in 0..levels {
        sizes.push(bytes.size(9)? as u32);
    }
    let seed = mix(bytes.next()? as u64);
    let mode = if bytes.next()? % 2 == 0 { ScoreMode::FullVocab } else { ScoreMode::ValidOnly };
    let mut widths = Vec::new();
    for _ in 0..levels {
        widths.push(bytes.size(12)?);
    }
    let denied: Vec<ItemIdx> = (0..bytes.next()? % 8).map(|at| ItemIdx((mix(seed ^ at as u64) % 40) as u32)).collect();
    let mut codes = Vec::new();
    let mut row = Vec::new();
    for byte in bytes.0.by_ref().take(60 * levels) {
        row.push((u32::from(*byte) % sizes[row.len()]) as Code);
        if row.len() == levels {
            codes.append(&mut row);
        }
    }
    let spec = SidSpec { codebook_sizes: sizes, suffix_size: None };
    let table = SidTable::new(spec, codes).expect("codes fit");
    let trie = Trie::build(&table).expect("few items");
    let live = LiveMask::all(&trie).without(&trie, &denied);
    let score = |prefix: &[Code], log_probs: &mut [f32]| {
        let mut state = prefix.iter().fold(seed, |state, code| mix(state ^ (u64::from(*code) + 1)));
        for log_prob in log_probs {
            state = mix(state);
            // Few values, so that ties abound, and some that are none.
            *log_prob = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY]
                .get(state as usize % 20)
                .copied()
                .unwrap_or(-(((state >> 8) % 5) as f32));
        }
    };
    let all = table.items().max(1);
    let fast = SimdKernel::new(&trie);
    let found = |config: &BeamConfig, plain: bool| -> Vec<Hypothesis> {
        let mut scorer = PrefixScorer::new(trie.spec(), |_, prefix: &[Code], out: &mut [f32]| score(prefix, out));
        let masks = std::slice::from_ref(&live);
        let lists = if plain {
            search(&CpuKernel::new(&trie), &mut scorer, config, 1, masks)
        } else {
            search(&fast, &mut scorer, config, 1, masks)
        };
        lists.expect("masks and widths fit").remove(0)
    };
    let wide = BeamConfig { score: mode, ..BeamConfig::uniform(all, levels, all) };
    let complete = oracle::exhaustive(&table, |item| live.allows(item), all, mode, score);
    assert_eq!(found(&wide, false), complete);

    let top_k = widths[levels - 1];
    let narrow = BeamConfig { widths, top_k, score: mode };
    let list = found(&narrow, false);
    assert_eq!(list, found(&narrow, true));
    let places: Vec<_> =
        list.iter().map(|h| complete.iter().position(|other| other == h).expect("an allowed item")).collect();
    assert!(list.len() <= top_k && places.windows(2).all(|pair| pair[0] < pair[1]));
    Some(())
}
