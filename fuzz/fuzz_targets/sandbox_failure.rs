//! Fuzzes `nodevitals::fuzzing::sandbox_failure`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::sandbox_failure(data));
