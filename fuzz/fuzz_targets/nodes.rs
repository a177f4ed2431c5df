//! Fuzzes `nodevitals::fuzzing::nodes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::nodes(data));
