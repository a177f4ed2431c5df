//! Whether the clock on the wall can be trusted with what depends on age.

use std::time::Duration;

use super::Now;

/// The clocks disagree when they are this many seconds further apart than before.
const APART: u64 = 60;
/// They have to agree for this long: a wrong time is not corrected at once.
const AGREED: Duration = Duration::from_secs(3600);

/// The first moment from which on the clock on the wall has gone like the one that never jumps.
#[derive(Debug, Clone, Default)]
pub(super) struct Clocks(Option<Now>);

impl Clocks {
    /// Whether both have gone alike for long enough.
    pub(super) fn agree(&mut self, now: Now) -> bool {
        let then = *self.0.get_or_insert(now);
        let passed = now.since(then.since_boot);
        let by_the_wall = now.wall.duration_since(then.wall).as_secs();
        if by_the_wall.abs_diff(i64::try_from(passed.as_secs()).unwrap_or(i64::MAX)) > APART {
            self.0 = Some(now);
            return false;
        }
        passed >= AGREED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[test]
    fn they_agree_an_hour_after_the_last_jump() {
        let mut clocks = Clocks::default();
        let mut agree = |boot: u64, wall: i64| {
            let wall = Timestamp::from_second(1_700_000_000 + wall).expect("valid");
            clocks.agree(Now { wall, since_boot: Duration::from_secs(boot) })
        };
        assert_eq!([agree(100, 100), agree(3_699, 3_699), agree(3_700, 3_760)], [false, false, true]);
        // A year ahead, and back.
        assert!(!agree(3_701, 31_540_000));
        assert_eq!([agree(3_702, 3_702), agree(7_301, 7_301), agree(7_302, 7_302)], [false, false, true]);
        assert!(!agree(7_303, 0), "a year back is a jump too");
    }
}
