//! The interface of the crate regex, by its small sister regex-lite: the same authors, syntax and guarantee of linear time,
//! without Unicode classes and without the engines that make it fast.

pub use regex_lite::*;
