//! Fuzzes `nodevitals::fuzzing::map`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::map(data));
