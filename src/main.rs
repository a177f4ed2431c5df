//! The program: parse, run, exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(not(debug_assertions))]
    without_backtraces();
    nodevitals::cli::main()
}

/// The shipped program has no tables for unwinding (`scripts/layout.ld`): asked for a backtrace the unwinder of libgcc
/// would end it without a word. So it starts itself anew without the variables that ask for one.
#[cfg(not(debug_assertions))]
fn without_backtraces() {
    use std::os::unix::process::CommandExt as _;

    const ASKING: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];
    if ASKING.iter().all(|name| std::env::var_os(name).is_none()) {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut anew = std::process::Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        anew.arg0(name);
    }
    // It comes back only when that is not possible, and then it goes on as it is.
    let _ = anew.args(arguments).env_remove(ASKING[0]).env_remove(ASKING[1]).exec();
}
