//! Fuzzes `nodevitals::fuzzing::proc`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::proc(data));
