//! What kernels are given, byte for byte as the `.cu` files declare it. Addresses are of the device.

use bytemuck::{Pod, Zeroable};

/// Most levels of an ID on a device.
pub const MAX_LEVELS: usize = 8;

macro_rules! arguments {
    ($vis:vis, $($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
        #[repr(C)]
        #[allow(missing_docs, reason = "described at the head of the kernel's file")]
        $vis struct $name { $($vis $field: $type),* }
    )*};
}

arguments! { pub,
    /// Of `product.cu`.
    ProductArgs {
        x: u64, row_ids: u64, w: u64, y0: u64, y1: u64, layer_stride: u64, values_at: u64,
        rows: u32, inputs: u32, dim: u32, cols: u32, ldx: u32, ldw: u32, ld0: u32, ld1: u32, split: u32, flags: u32,
        seq: u32, seq_pad: u32, heads: u32, head_dim: u32,
    }
    /// Of `feed_forward.cu`.
    FeedForwardArgs {
        x: u64, wi: u64, wo: u64,
        rows: u32, dim: u32, dim_pad: u32, hidden: u32, ldx: u32, ldi: u32, ldo: u32, pad: u32,
    }
    /// Of `head.cu`.
    HeadArgs {
        x: u64, w: u64, logits: u64, partials: u64,
        rows: u32, inputs: u32, dim: u32, codes: u32, ldx: u32, ldw: u32, ldl: u32, tiles: u32,
    }
    /// Of `attend.cu`.
    AttendArgs {
        x: u64, wq: u64, keys: u64, values: u64, bias: u64, lengths: u64, y: u64,
        queries: u32, seq: u32, seq_pad: u32, heads: u32, head_dim: u32, ldx: u32, ldw: u32, ldy: u32, dim: u32,
        dim_pad: u32, distances: u32, zero: u32, causal: u32, pad: u32,
    }
    /// Of `path.cu`.
    PathArgs {
        query: u64, cache: u64, ancestors: u64, bias: u64, w: u64, x: u64, step_stride: u64,
        rows: u32, step: u32, heads: u32, head_dim: u32, ldw: u32, ldx: u32, cols: u32, distances: u32, zero: u32, pad: u32,
    }
    /// Of `embed.cu`.
    EmbedArgs { table: u64, ids: u64, x: u64, rows: u32, same: u32, ldt: u32, ldx: u32 }
    /// Of `norm.cu`.
    NormArgs { x: u64, row_ids: u64, y: u64, rows: u32, dim: u32, ldx: u32, ldy: u32 }
}

arguments! { pub(crate),
    /// Of `expand.cu`.
    ExpandArgs {
        index: u64, masks: u64, pool: u64, logits: u64, partials: u64, nodes: u64, scores: u64, counts: u64, keys: u64,
        key_counts: u64, best: u64, stride: u64,
        level: u32, beams: u32, width: u32, codes: u32, ldl: u32, tiles: u32, valid_only: u32, at: u32, below: u32,
        weight: f32,
    }
    /// Of `guide.cu`.
    GuideArgs {
        index: u64, masks: u64, pool: u64, counts: u64, scores: u64, log_sums: u64, best: u64, stride: u64,
        items: u32, lds: u32, level: u32, at: u32, below: u32, pad: u32,
    }
    /// Of `select.cu`.
    SelectArgs {
        index: u64, keys: u64, key_counts: u64, nodes: u64, ancestors: u64, path: u64, new_nodes: u64, new_scores: u64,
        new_ancestors: u64, new_path: u64, new_counts: u64, table: u64, x: u64,
        level: u32, beams: u32, width: u32, parts: u32, codes: u32, table_row: u32, ldt: u32, ldx: u32,
    }
    /// Of `finish.cu`.
    FinishArgs {
        index: u64, masks: u64, pool: u64, nodes: u64, scores: u64, counts: u64, path: u64, found: u64, items: u64,
        item_scores: u64, codes: u64,
        beams: u32, k: u32,
    }
    /// One level of the arena, as `trie.cuh` reads it.
    LevelHeader { width: u32, nodes: u32, wide: u32, pad: u32, bases: u64, distances: u64, codes: u64 }
    /// The arena, as `trie.cuh` reads it.
    IndexHeader {
        words: u64, items_at: u64, live_at: [u64; MAX_LEVELS + 2], levels: u32, items: u32, aliases: u32, pad: u32,
        level: [LevelHeader; MAX_LEVELS + 1],
    }
    /// What one request may see, as `trie.cuh` reads it.
    MaskHeader { live: u64, kind: u32, pad: u32, at: [u32; MAX_LEVELS + 4] }
}

/// [`ProductArgs::flags`]: x is divided by its root mean square.
pub const NORM: u32 = 1;
/// [`ProductArgs::flags`]: negative numbers become 0.
pub const RELU: u32 = 2;
/// [`ProductArgs::flags`]: on top of what is in y, which holds floats.
pub const ADD: u32 = 4;
/// [`ProductArgs::flags`]: y holds floats.
pub const FLOATS: u32 = 8;
/// [`ProductArgs::flags`]: y1 holds keys and transposed values, head by head.
pub const HEADS: u32 = 16;
