//! Fuzzes `nodevitals::fuzzing::registry`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::registry(data));
