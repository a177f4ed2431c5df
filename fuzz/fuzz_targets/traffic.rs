//! Fuzzes `nodevitals::fuzzing::traffic`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::traffic(data));
