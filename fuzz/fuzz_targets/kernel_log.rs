//! Fuzzes `nodevitals::fuzzing::kernel_log`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::kernel_log(data));
