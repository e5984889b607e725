//! Every kernel: its source, how it is compiled, and what it may cost.

use super::args::{
    AttendArgs, EmbedArgs, ExpandArgs, FeedForwardArgs, FinishArgs, HeadArgs, NormArgs, PathArgs, ProductArgs,
    SelectArgs,
};
use std::fmt::{self, Display, Formatter};
use std::mem::size_of;

/// What weights and activations are kept in on a device. Scores, logits and the residual stream are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Numbers {
    /// 32 bits, sums by fused multiply-adds: for comparisons.
    F32,
    /// bfloat16 on tensor cores with f32 sums.
    Bf16,
}

impl Numbers {
    /// Both.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl Display for Numbers {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// One kernel.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// As the device knows it.
    pub name: &'static str,
    /// Bytes of its arguments.
    pub args_bytes: usize,
    /// Registers that a thread may take: what keeps enough warps on a multiprocessor.
    pub max_registers: u32,
}

/// A source file and its kernels.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    /// Name of the file.
    pub file: &'static str,
    /// What it begins with, and itself.
    pub sources: &'static [&'static str],
    /// In it.
    pub kernels: &'static [Kernel],
}

const PRELUDE: &str = include_str!("kernels/prelude.cuh");
const TILE: &str = include_str!("kernels/tile.cuh");
const TRIE: &str = include_str!("kernels/trie.cuh");
const KEYS: &str = include_str!("kernels/keys.cuh");

const fn kernel<Args>(name: &'static str, max_registers: u32) -> Kernel {
    Kernel { name, args_bytes: size_of::<Args>(), max_registers }
}

/// All of them.
pub const UNITS: &[Unit] = &[
    Unit {
        file: "product.cu",
        sources: &[PRELUDE, TILE, include_str!("kernels/product.cu")],
        kernels: &[kernel::<ProductArgs>("product_16", 128), kernel::<ProductArgs>("product_64", 168)],
    },
    Unit {
        file: "feed_forward.cu",
        sources: &[PRELUDE, TILE, include_str!("kernels/feed_forward.cu")],
        kernels: &[
            kernel::<FeedForwardArgs>("feed_forward_16", 128),
            kernel::<FeedForwardArgs>("feed_forward_64", 255),
        ],
    },
    Unit {
        file: "head.cu",
        sources: &[PRELUDE, TILE, include_str!("kernels/head.cu")],
        kernels: &[kernel::<HeadArgs>("head", 128)],
    },
    Unit {
        file: "attend.cu",
        sources: &[PRELUDE, TILE, include_str!("kernels/attend.cu")],
        kernels: &[kernel::<AttendArgs>("attend", 128)],
    },
    Unit {
        file: "path.cu",
        sources: &[PRELUDE, TILE, include_str!("kernels/path.cu")],
        kernels: &[kernel::<PathArgs>("path", 128)],
    },
    Unit {
        file: "expand.cu",
        sources: &[PRELUDE, TRIE, KEYS, include_str!("kernels/expand.cu")],
        kernels: &[kernel::<ExpandArgs>("expand", 128)],
    },
    Unit {
        file: "select.cu",
        sources: &[PRELUDE, TRIE, KEYS, include_str!("kernels/select.cu")],
        kernels: &[kernel::<SelectArgs>("select_best", 128)],
    },
    Unit {
        file: "finish.cu",
        sources: &[PRELUDE, TRIE, include_str!("kernels/finish.cu")],
        kernels: &[kernel::<FinishArgs>("finish", 128)],
    },
    Unit {
        file: "embed.cu",
        sources: &[PRELUDE, include_str!("kernels/embed.cu")],
        kernels: &[kernel::<EmbedArgs>("embed", 64)],
    },
    Unit {
        file: "norm.cu",
        sources: &[PRELUDE, TILE, include_str!("kernels/norm.cu")],
        kernels: &[kernel::<NormArgs>("normalize", 64)],
    },
];

impl Unit {
    /// The text and the options that say what it is compiled for.
    pub(crate) fn program(&self, numbers: Numbers) -> (String, Vec<String>) {
        // Without matrices the numbers make no difference, and one code does for both.
        let bf16 = u8::from(numbers == Numbers::Bf16 && self.sources.contains(&TILE));
        let mut options = vec![format!("-DBF16={bf16}")];
        options.extend(self.kernels.iter().map(|kernel| format!("-DARGS_{}={}", kernel.name, kernel.args_bytes)));
        (self.sources.concat(), options)
    }
}

/// All sources as one text for the host compiler, each once.
pub(crate) fn host_program() -> String {
    let mut sources = vec![include_str!("emulate.hpp")];
    for source in UNITS.iter().flat_map(|unit| unit.sources) {
        if !sources.contains(source) {
            sources.push(source);
        }
    }
    sources.concat()
}

/// All kernels.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernel> {
    UNITS.iter().flat_map(|unit| unit.kernels)
}
