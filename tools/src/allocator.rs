//! Large blocks of memory go back on a shelf instead of to the system while a model trains.
//!
//! Why: every tensor of a training step is megabytes of fresh memory, which the system maps, clears and takes back each
//! time; that was a fifth of a step of `tiger`. Sizes are rounded up to an eighth of an octave so that blocks fit again
//! although batches differ in length. Nothing is kept while nobody trains, and at most `MOST` bytes then.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks of up to so many bytes are the system allocator's alone.
const SMALL: usize = 1 << 16;
/// So are blocks of more than this.
const LARGE: usize = 1 << 30;
/// Bytes on the shelf at most.
const MOST: usize = 1 << 30;
/// What the system can keep when it moves a block without copying it.
const ALIGN: usize = 16;
const SHELVES: usize = (30 - 16) * 8;

/// Heads of lists of free blocks by size; the first word of a free block points to the next one.
static FREE: [Mutex<usize>; SHELVES] = [const { Mutex::new(0) }; SHELVES];
static HELD: AtomicUsize = AtomicUsize::new(0);
static KEEPERS: AtomicUsize = AtomicUsize::new(0);

/// The program's allocator.
pub struct Shelves;

/// While one lives, large blocks are kept.
#[must_use = "blocks are given back when it is dropped"]
pub struct Kept(());

/// Keeps large blocks until the result is dropped.
pub fn keep_blocks() -> Kept {
    KEEPERS.fetch_add(1, Ordering::Relaxed);
    Kept(())
}

impl Drop for Kept {
    fn drop(&mut self) {
        if KEEPERS.fetch_sub(1, Ordering::Relaxed) == 1 {
            (0..SHELVES).for_each(give_back);
        }
    }
}

/// Shelf and rounded size of a layout that is ours.
fn shelf_of(layout: Layout) -> Option<(usize, Layout)> {
    let size = layout.size();
    if size <= SMALL || size > LARGE || layout.align() > ALIGN {
        return None;
    }
    let last = size - 1;
    let octave = last.ilog2();
    let eighths = last >> (octave - 3);
    let rounded = Layout::from_size_align((eighths + 1) << (octave - 3), ALIGN).ok()?;
    Some(((octave as usize - 16) * 8 + (eighths & 7), rounded))
}

fn lock(shelf: usize) -> MutexGuard<'static, usize> {
    FREE[shelf].lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(unsafe_code, reason = "the list runs through the free blocks themselves")]
fn take(shelf: usize, rounded: Layout) -> Option<*mut u8> {
    let mut head = lock(shelf);
    let block = *head as *mut usize;
    if block.is_null() {
        return None;
    }
    // SAFETY: a block on a shelf is free memory of at least a word whose first word was written by `put`.
    *head = unsafe { block.read() };
    HELD.fetch_sub(rounded.size(), Ordering::Relaxed);
    Some(block.cast())
}

/// Whether the block was taken.
#[allow(unsafe_code, reason = "the list runs through the free blocks themselves")]
#[allow(clippy::cast_ptr_alignment, reason = "blocks are aligned to ALIGN, more than a word")]
fn put(shelf: usize, rounded: Layout, block: *mut u8) -> bool {
    if KEEPERS.load(Ordering::Relaxed) == 0 || HELD.load(Ordering::Relaxed) + rounded.size() > MOST {
        return false;
    }
    let mut head = lock(shelf);
    // SAFETY: the caller gives a block of `rounded` that nobody uses any more; it is aligned for a word.
    unsafe { block.cast::<usize>().write(*head) };
    *head = block as usize;
    HELD.fetch_add(rounded.size(), Ordering::Relaxed);
    true
}

/// Empties a shelf into the system.
#[allow(unsafe_code, reason = "frees blocks that the system gave")]
fn give_back(shelf: usize) {
    let (octave, eighths) = (shelf / 8 + 16, shelf % 8 + 8);
    let Ok(rounded) = Layout::from_size_align((eighths + 1) << (octave - 3), ALIGN) else { return };
    while let Some(block) = take(shelf, rounded) {
        // SAFETY: every block of a shelf came from the system with the shelf's layout.
        unsafe { System.dealloc(block, rounded) };
    }
}

#[allow(unsafe_code, reason = "an allocator")]
// SAFETY: a layout that is ours always goes to the system, and to a shelf, as its rounded form, whoever keeps blocks at
// the time; a block is on a shelf or in use, never both, since lists change under their lock. Other layouts pass through.
unsafe impl GlobalAlloc for Shelves {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match shelf_of(layout) {
            // SAFETY: the rounded layout is not empty.
            Some((shelf, rounded)) => take(shelf, rounded).unwrap_or_else(|| unsafe { System.alloc(rounded) }),
            // SAFETY: the caller's promise is passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match shelf_of(layout) {
            Some((shelf, rounded)) => match take(shelf, rounded) {
                Some(block) => {
                    // SAFETY: the block holds at least `layout.size()` bytes.
                    unsafe { block.write_bytes(0, layout.size()) };
                    block
                }
                // SAFETY: the rounded layout is not empty.
                None => unsafe { System.alloc_zeroed(rounded) },
            },
            // SAFETY: the caller's promise is passed on.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match shelf_of(layout) {
            Some((shelf, rounded)) => {
                if !put(shelf, rounded, block) {
                    // SAFETY: it came from the system with this layout.
                    unsafe { System.dealloc(block, rounded) };
                }
            }
            // SAFETY: the caller's promise is passed on.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
        match (shelf_of(layout), shelf_of(wanted)) {
            (Some((old, _)), Some((new, _))) if old == new => block,
            // SAFETY: the block came from the system as `old`, and the rounded size is not zero.
            (Some((_, old)), Some((_, new))) => unsafe { System.realloc(block, old, new.size()) },
            // SAFETY: the caller's promise is passed on.
            (None, None) => unsafe { System.realloc(block, layout, size) },
            _ => {
                // SAFETY: the new block is another one; both hold at least the smaller of the two sizes.
                unsafe {
                    let moved = self.alloc(wanted);
                    if !moved.is_null() {
                        block.copy_to_nonoverlapping(moved, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "calls the allocator by hand")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 4).unwrap()
    }

    proptest! {
        #[test]
        fn a_shelf_fits_what_goes_there(size in SMALL + 1..LARGE) {
            let (shelf, rounded) = shelf_of(layout(size)).unwrap();
            prop_assert!(rounded.size() >= size && rounded.size() - size <= size / 8);
            prop_assert!(shelf < SHELVES);
            prop_assert_eq!(shelf_of(layout(rounded.size())), Some((shelf, rounded)));
            let (octave, eighths) = (shelf / 8 + 16, shelf % 8 + 8);
            prop_assert_eq!((eighths + 1) << (octave - 3), rounded.size());
        }
    }

    #[test]
    fn small_and_huge_blocks_pass_through() {
        assert!(shelf_of(layout(SMALL)).is_none() && shelf_of(layout(LARGE + 1)).is_none());
        assert!(shelf_of(Layout::from_size_align(1 << 20, 4096).unwrap()).is_none());
        assert!(shelf_of(layout(LARGE)).is_some());
    }

    #[test]
    fn blocks_come_back_cleared_and_grow_with_their_values() {
        let (size, wider) = (3_333_333, 3_400_000);
        // SAFETY: blocks are used within their layouts and freed once.
        unsafe {
            let kept = keep_blocks();
            let first = Shelves.alloc(layout(size));
            first.write(7);
            first.add(70_000).write(9);
            Shelves.dealloc(first, layout(size));
            let again = Shelves.alloc_zeroed(layout(wider));
            assert_eq!((again, again.read(), again.add(70_000).read()), (first, 0, 0));
            Shelves.dealloc(again, layout(wider));
            drop(kept);
            for (from, to) in [(100, 200), (1000, 200_000), (200_000, 210_000), (200_000, 1 << 20), (1 << 20, 50)] {
                let block = Shelves.alloc(layout(from));
                block.write(5);
                block.add(from.min(to) - 1).write(6);
                let moved = Shelves.realloc(block, layout(from), to);
                assert_eq!((moved.read(), moved.add(from.min(to) - 1).read()), (5, 6));
                Shelves.dealloc(moved, layout(to));
            }
        }
    }
}
