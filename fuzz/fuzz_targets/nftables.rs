//! Fuzzes `nodevitals::fuzzing::nftables`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::nftables(data));
