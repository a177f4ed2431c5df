//! What the Pods of `nodevitals uninstall` run on each node.

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;

use crate::agent;
use crate::cli::{failed, terminal};

/// Options of `nodevitals erase`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Here {
    /// The agent's directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Do nothing any more after this time: a node that was away for long may have an agent again
    #[arg(long, value_name = "TIME")]
    until: Timestamp,
}

/// Erases what an agent kept on this machine.
pub(in crate::cli) fn erase(options: &Here) -> ExitCode {
    match at(options, Timestamp::now()) {
        Ok(agent::Erased::Now) => terminal::print("erased\n"),
        Ok(agent::Erased::Before) => terminal::print("there was nothing\n"),
        Err(error) => return failed(&error),
    }
    ExitCode::SUCCESS
}

fn at(Here { directory, until }: &Here, now: Timestamp) -> anyhow::Result<agent::Erased> {
    anyhow::ensure!(now <= *until, "it was to be done until {until}, and now it is {now}: an agent may run here again");
    agent::erase(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_too_long_ago_is_not_done() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let directory = dir.path().join("nodevitals");
        std::fs::create_dir(&directory).expect("mkdir");
        let until = Timestamp::from_second(1_700_000_000).expect("valid");
        let here = Here { directory: directory.clone(), until };
        let late = at(&here, until + jiff::SignedDuration::from_secs(1)).expect_err("too late");
        assert!(late.to_string().contains("an agent may run here again") && directory.exists(), "{late}");
        assert_eq!(at(&here, until).expect("erases"), agent::Erased::Now);
        assert!(!directory.exists());
    }
}
