//! What the kernel says of this node's clock: adjtimex(2), which sets nothing and needs no capability as it is asked here.

use rtime_clock::adjtime::{Timex, adjtimex};

use crate::facts::{KernelClock, LookError, Seen};

/// `STA_UNSYNC` of `linux/timex.h`.
const UNSYNCHRONISED: i32 = 0x40;

/// Asks it.
pub(super) fn look() -> Seen<KernelClock> {
    // All zero: nothing is to be set.
    let mut answer = Timex::new();
    let state = adjtimex(&mut answer);
    read(state, &answer)
}

/// What it answered. The state itself says no more than the status bits, and mixes errors of other kinds into them.
fn read(state: std::io::Result<i32>, answer: &Timex) -> Seen<KernelClock> {
    let clock = state.map(|_| KernelClock {
        synchronised: answer.0.status & UNSYNCHRONISED == 0,
        // In microseconds.
        largest_error_millis: u64::try_from(answer.0.maxerror).unwrap_or(0) / 1000,
    });
    clock.map_err(|error| LookError::io("adjtimex", &error)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Reason;

    fn answer(status: i32, micros: i64) -> Timex {
        let mut answer = Timex::new();
        (answer.0.status, answer.0.maxerror) = (status, micros);
        answer
    }

    fn clock(synchronised: bool, largest_error_millis: u64) -> Seen<KernelClock> {
        Seen::Yes(KernelClock { synchronised, largest_error_millis })
    }

    #[test]
    fn this_kernel_says_the_same_to_another_program() {
        let output =
            std::process::Command::new("busybox").arg("adjtimex").output().expect("apt-get install busybox-static");
        let said = String::from_utf8(output.stdout).expect("text");
        let number = |name: &str| -> u64 {
            let line = said.lines().find_map(|line| line.split_once(name)).expect("a line");
            line.1.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
        };
        let Seen::Yes(clock) = look() else { panic!("{:?}", look()) };
        assert_eq!(clock.synchronised, number("status:") & 0x40 == 0, "{said}");
        let millis = clock.largest_error_millis;
        assert!(millis.abs_diff(number("maxerror:") / 1000) <= 2000, "{millis} {said}");
    }

    #[test]
    fn the_status_and_the_largest_error() {
        // STA_NANO and STA_PLL, as a time service leaves them.
        assert_eq!(read(Ok(0), &answer(0x2001, 20_500)), clock(true, 20));
        assert_eq!(read(Ok(5), &answer(0x40, 16_000_000)), clock(false, 16_000));
        // STA_CLOCKERR: the state is 5 too.
        assert_eq!(read(Ok(5), &answer(0x1000, 12_000_000)), clock(true, 12_000));
    }

    #[test]
    fn a_filter_of_system_calls_is_no_answer() {
        // EPERM
        let seen = read(Err(std::io::Error::from_raw_os_error(1)), &Timex::new());
        assert_eq!(seen.error().map(|error| error.reason), Some(Reason::Denied));
    }
}
