//! What goes wrong again and again is warned of when it begins, when its reason is another, and seldom while it lasts. Pure.

use std::time::Duration;

/// While it lasts for the same reason it is warned of again after this time.
const AGAIN: Duration = Duration::from_secs(3600);

/// What has been warned of: the reason, and when, on the boot clock.
#[derive(Debug)]
pub(super) struct Warned<Why> {
    last: Option<(Why, Duration)>,
}

/// What is to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It fails.
    Fails,
    /// It does no more.
    Over,
}

impl<Why> Default for Warned<Why> {
    fn default() -> Self {
        Warned { last: None }
    }
}

impl<Why: PartialEq> Warned<Why> {
    /// It failed for this reason, or did not; answers with what is to be said of that now.
    pub(super) fn step(&mut self, failed: Option<Why>, now: Duration) -> Option<News> {
        let Some(reason) = failed else { return self.last.take().map(|_| News::Over) };
        if self.last.as_ref().is_some_and(|(known, at)| *known == reason && now.saturating_sub(*at) < AGAIN) {
            return None;
        }
        self.last = Some((reason, now));
        Some(News::Fails)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_at_first_for_each_reason_and_seldom_while_it_lasts() {
        let mut warned = Warned::default();
        let mut said = |failed, second| warned.step(failed, Duration::from_secs(second));
        assert_eq!(said(None, 0), None, "it never failed");
        assert_eq!([said(Some(404), 20), said(Some(404), 40), said(Some(404), 3_619)], [Some(News::Fails), None, None]);
        assert_eq!([said(Some(404), 3_620), said(Some(404), 3_640)], [Some(News::Fails), None], "an hour later");
        assert_eq!([said(Some(403), 3_660), said(Some(403), 3_680)], [Some(News::Fails), None], "another reason");
        assert_eq!([said(None, 3_700), said(None, 3_720)], [Some(News::Over), None]);
        assert_eq!(said(Some(403), 3_740), Some(News::Fails), "it begins anew");
    }
}
