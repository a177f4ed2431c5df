//! Fuzzes `nodevitals::fuzzing::findings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::findings(data));
