//! Fuzzes `nodevitals::fuzzing::blocks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::blocks(data));
