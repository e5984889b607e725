//! The jobs behind the `sidrec` binary.
//!
//! Rooms, in the order data flows: [`table`] (files in and out), [`demo`] (the generated catalogue), [`catalogue`]
//! (items with their IDs, checked as one), [`models`] (every trainable model by name), [`jobs`], [`report`] (tables
//! and the page), [`serve`] (the retrieval server), [`gpu`] (where models
//! compute), [`cli`]; [`allocator`] is the program's.

pub mod allocator;
mod bench;
pub mod catalogue;
pub mod cli;
pub mod cold;
pub mod config;
pub mod content;
pub mod demo;
pub mod error;
pub mod gpu;
pub mod interrupt;
pub mod jobs;
pub mod models;
pub mod progress;
pub mod report;
pub mod serve;
mod sids;
pub mod table;
