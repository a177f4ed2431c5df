//! Fuzzes `nodevitals::fuzzing::ipset`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::ipset(data));
