//! Fuzzes `nodevitals::fuzzing::explain`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::explain(data));
