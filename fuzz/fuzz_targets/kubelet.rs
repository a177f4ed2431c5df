//! Fuzzes `nodevitals::fuzzing::kubelet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodevitals::fuzzing::kubelet(data));
