//! Fuzzes `nodevitals::fuzzing::cni`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::cni(data));
