//! Named, seeded random streams, and the mode of a forward pass.
//!
//! Every purpose draws from its own stream, keyed by (seed, name, counter). Nothing keeps a generator between
//! steps, so a resumed run draws exactly what the uninterrupted one would have drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::cell::Cell;

/// A seed from which named streams are derived.
#[derive(Debug, Clone, Copy)]
pub struct SeededRng {
    seed: u64,
}

impl SeededRng {
    /// Streams of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The generator for `name`, always from its beginning.
    pub fn stream(&self, name: &str) -> ChaCha8Rng {
        self.stream_at(name, 0)
    }

    /// The generator for `name` at `counter`, for instance an epoch's shuffle.
    pub fn stream_at(&self, name: &str, counter: u64) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(*self.hash(name, counter).as_bytes())
    }

    /// A derived seed for `name` at `counter`.
    pub fn key(&self, name: &str, counter: u64) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.hash(name, counter).as_bytes()[..8]);
        u64::from_le_bytes(bytes)
    }

    fn hash(&self, name: &str, counter: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&counter.to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.finalize()
    }
}

/// Hands out one key per dropout site of a training step, in the order of the forward pass.
#[derive(Debug, Clone)]
pub struct StepKeys {
    next: Cell<u64>,
}

impl StepKeys {
    /// Keys of training step `step`.
    pub fn new(rng: &SeededRng, step: u64) -> Self {
        Self { next: Cell::new(rng.key("step", step)) }
    }

    /// Goes on where a copy of these keys, `ahead`, has come to.
    pub fn follow(&self, ahead: &Self) {
        self.next.set(ahead.next.get());
    }

    /// The next key.
    pub fn next_key(&self) -> u64 {
        let key = self.next.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.next.set(key);
        mix(key)
    }
}

/// Bits of position `index` under `key`: a counter-based generator (`SplitMix64`'s finaliser), so that a mask can be
/// drawn again in the backward pass instead of being stored.
#[inline]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Explicit in every forward pass; a training pass brings its keys, an evaluation needs none.
#[derive(Debug, Clone, Copy)]
pub enum Mode<'r> {
    /// Dropout on, drawn from these keys.
    Train(&'r StepKeys),
    /// Dropout off.
    Eval,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_differ_by_name_and_counter_and_repeat() {
        let rng = SeededRng::new(7);
        let draw = |name: &str, n| rng.stream_at(name, n).random::<u64>();
        assert_eq!(draw("a", 0), draw("a", 0));
        assert_ne!(draw("a", 0), draw("b", 0));
        assert_ne!(draw("a", 0), draw("a", 1));
        assert_ne!(SeededRng::new(8).key("a", 0), rng.key("a", 0));
    }

    #[test]
    fn keys_of_a_step_repeat() {
        let rng = SeededRng::new(1);
        let (a, b) = (StepKeys::new(&rng, 3), StepKeys::new(&rng, 3));
        assert_eq!([a.next_key(), a.next_key()], [b.next_key(), b.next_key()]);
        assert_ne!(a.next_key(), StepKeys::new(&rng, 4).next_key());
    }
}
