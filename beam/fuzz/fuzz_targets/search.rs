#![no_main]

#[path = "../../tests/corpus/search.rs"]
mod search;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    search::run(data);
});
