//! Running a command and keeping what it said when it fails.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// A command with its arguments.
pub fn command<S: AsRef<OsStr>>(argv: &[S]) -> Command {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null());
    command
}

/// Standard output of a command that must succeed; its standard error otherwise.
pub fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} does not start"))?;
    text(command, &output)
}

/// [`read`] with `input` on the command's standard input.
pub fn read_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?} does not start"))?;
    let mut stdin = child.stdin.take().expect("piped above");
    // A thread of its own: the command may answer before it has read everything.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    })?;
    text(command, &output)
}

fn text(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{} of {command:?}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
