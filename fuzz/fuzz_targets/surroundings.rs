//! Fuzzes `nodevitals::fuzzing::surroundings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::surroundings(data));
