//! Fuzzes `nodevitals::fuzzing::legacy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::legacy(data));
