//! Fuzzes `nodevitals::fuzzing::bird`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::bird(data));
