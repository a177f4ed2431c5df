//! Fuzzes `nodevitals::fuzzing::cri`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::cri(data));
