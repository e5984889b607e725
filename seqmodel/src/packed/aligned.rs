//! Memory that starts with a line of a cache.

use bytemuck::{Pod, Zeroable};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// What caches move at once.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A vector whose elements start with a line of a cache, so that what has the size of a line lies in one, not in two: a
/// processor takes twice as long to read what lies in two.
#[derive(Clone)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// Has so many elements from now on: those that it has had, and zeros or elements of before.
    pub(crate) fn make_room(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.lines.resize(lines, Line::zeroed());
        }
        self.len = len;
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn extend_from_slice(&mut self, more: &[T]) {
        let before = self.len;
        self.make_room(before + more.len());
        self[before..].copy_from_slice(more);
    }
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), len: 0, of: PhantomData }
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let lines = (self.len * size_of::<T>()).div_ceil(size_of::<Line>());
        &bytemuck::cast_slice(&self.lines[..lines])[..self.len]
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        let lines = (self.len * size_of::<T>()).div_ceil(size_of::<Line>());
        &mut bytemuck::cast_slice_mut(&mut self.lines[..lines])[..self.len]
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.deref().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_vector_that_starts_with_a_line() {
        let mut numbers = Aligned::<f32>::default();
        assert!(numbers.is_empty());
        for round in 0..3 {
            numbers.clear();
            for at in 0..50 {
                numbers.extend_from_slice(&[at as f32, round as f32]);
                assert_eq!(numbers.len(), 2 * at + 2);
            }
            assert!(numbers.iter().step_by(2).enumerate().all(|(at, number)| *number == at as f32));
            assert!(numbers.iter().skip(1).step_by(2).all(|number| *number == round as f32));
            assert!(numbers.as_ptr().addr().is_multiple_of(64));
        }
        numbers.make_room(7);
        assert_eq!(numbers.to_vec(), [0.0, 2.0, 1.0, 2.0, 2.0, 2.0, 3.0]);
        let mut wide = Aligned::<[u8; 128]>::default();
        (0..5).for_each(|at| wide.extend_from_slice(&[[at; 128]]));
        assert_eq!((wide.len(), wide[4]), (5, [4; 128]));
    }
}
