//! sidrec
fn main() {}
