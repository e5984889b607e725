//! Every kernel: its source, how it is compiled, and what it may cost.

use super::args::{
    AttendArgs, EmbedArgs, ExpandArgs, FeedForwardArgs, FinishArgs, GuideArgs, HeadArgs, NormArgs, PathArgs,
    ProductArgs, SelectArgs,
};
use super::train::{
    AdamWArgs, BiasArgs, CodewordArgs, CrossEntropyArgs, DrawnArgs, ElementArgs, FoldArgs, GatherArgs, MatmulArgs,
    NearestArgs, ScatterArgs, SquaresArgs, TowerBiasArgs, TowerBiasBackArgs, TowerErrorArgs, TrainAttendArgs,
    TrainNormArgs,
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
const BLOCK: &str = include_str!("kernels/block.cuh");
const DROP: &str = include_str!("kernels/train/drop.cuh");

const fn kernel<Args>(name: &'static str, max_registers: u32) -> Kernel {
    Kernel { name, args_bytes: size_of::<Args>(), max_registers }
}

/// Those of search and of generation, which every device loads when it is opened.
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
        file: "guide.cu",
        sources: &[PRELUDE, TRIE, BLOCK, include_str!("kernels/guide.cu")],
        kernels: &[
            kernel::<GuideArgs>("guide_sums", 64),
            kernel::<GuideArgs>("guide_leaves", 64),
            kernel::<GuideArgs>("guide_level", 64),
        ],
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

/// Those of training, loaded when one is first asked for.
pub const TRAIN_UNITS: &[Unit] = &[
    Unit {
        file: "train/matmul.cu",
        sources: &[PRELUDE, TILE, include_str!("kernels/train/matmul.cu")],
        kernels: &[kernel::<MatmulArgs>("train_matmul", 168)],
    },
    Unit {
        file: "train/rows.cu",
        sources: &[PRELUDE, BLOCK, include_str!("kernels/train/rows.cu")],
        kernels: &[
            kernel::<GatherArgs>("gather_rows", 64),
            kernel::<ScatterArgs>("scatter_rows", 64),
            kernel::<FoldArgs>("fold", 64),
            kernel::<BiasArgs>("bias_forward", 64),
            kernel::<BiasArgs>("bias_backward", 64),
        ],
    },
    Unit {
        file: "train/elementwise.cu",
        sources: &[PRELUDE, DROP, include_str!("kernels/train/elementwise.cu")],
        kernels: &[kernel::<ElementArgs>("element", 64)],
    },
    Unit {
        file: "train/norm.cu",
        sources: &[PRELUDE, include_str!("kernels/train/norm.cu")],
        kernels: &[kernel::<TrainNormArgs>("norm_forward", 64), kernel::<TrainNormArgs>("norm_backward", 64)],
    },
    Unit {
        file: "train/attend.cu",
        sources: &[PRELUDE, DROP, include_str!("kernels/train/attend.cu")],
        kernels: &[kernel::<TrainAttendArgs>("attend_forward", 128), kernel::<TrainAttendArgs>("attend_backward", 128)],
    },
    Unit {
        file: "train/loss.cu",
        sources: &[PRELUDE, BLOCK, include_str!("kernels/train/loss.cu")],
        kernels: &[
            kernel::<CrossEntropyArgs>("cross_entropy", 64),
            kernel::<DrawnArgs>("drawn_scores", 64),
            kernel::<DrawnArgs>("drawn_backward", 64),
        ],
    },
    Unit {
        file: "train/towers.cu",
        sources: &[PRELUDE, BLOCK, include_str!("kernels/train/towers.cu")],
        kernels: &[
            kernel::<TowerBiasArgs>("tower_bias", 64),
            kernel::<TowerBiasBackArgs>("tower_bias_back", 64),
            kernel::<TowerErrorArgs>("tower_error", 64),
        ],
    },
    Unit {
        file: "train/nearest.cu",
        sources: &[PRELUDE, include_str!("kernels/train/nearest.cu")],
        kernels: &[
            kernel::<NearestArgs>("nearest_code", 64),
            kernel::<CodewordArgs>("subtract_codeword", 64),
            kernel::<CodewordArgs>("unit_rows", 64),
        ],
    },
    Unit {
        file: "train/adamw.cu",
        sources: &[PRELUDE, BLOCK, include_str!("kernels/train/adamw.cu")],
        kernels: &[kernel::<SquaresArgs>("sum_of_squares", 64), kernel::<AdamWArgs>("adamw", 64)],
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
    for source in UNITS.iter().chain(TRAIN_UNITS).flat_map(|unit| unit.sources) {
        if !sources.contains(source) {
            sources.push(source);
        }
    }
    sources.concat()
}

/// All kernels.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernel> {
    UNITS.iter().chain(TRAIN_UNITS).flat_map(|unit| unit.kernels)
}
