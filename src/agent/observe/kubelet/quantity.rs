//! Quantities as Kubernetes writes them: `10%`, `100Mi`, `500M`, `1e9`.

use crate::facts::Quantity;

/// Suffixes and their factors, the longer ones first.
const FACTORS: [(&str, f64); 13] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("m", 1e-3),
];

/// A quantity; none when it is not one.
pub(super) fn parse(text: &str) -> Option<Quantity> {
    let text = text.trim();
    if let Some(percent) = text.strip_suffix('%') {
        return number(percent).filter(|percent| *percent <= 100.0).map(Quantity::Percent);
    }
    let suffixed = FACTORS.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)));
    let (digits, factor) = suffixed.unwrap_or((text, 1.0));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; too large saturates")]
    number(digits).map(|number| Quantity::Absolute((number * factor) as u64))
}

/// A finite number that is not negative. `f64` also takes words such as `inf`, which are none here.
fn number(digits: &str) -> Option<f64> {
    let first = digits.trim_start_matches('+').chars().next()?;
    (first.is_ascii_digit() || first == '.').then(|| digits.parse().ok())?.filter(|number: &f64| number.is_finite())
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    if let Some(Quantity::Percent(percent)) = parse(text) {
        assert!((0.0..=100.0).contains(&percent), "{text:?} is {percent}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, expected) in [
            ("10%", Quantity::Percent(10.0)),
            ("7.5%", Quantity::Percent(7.5)),
            ("100Mi", Quantity::Absolute(100 << 20)),
            ("1Gi", Quantity::Absolute(1 << 30)),
            ("500M", Quantity::Absolute(500_000_000)),
            ("1.5Gi", Quantity::Absolute(3 << 29)),
            ("5k", Quantity::Absolute(5000)),
            ("2E", Quantity::Absolute(2_000_000_000_000_000_000)),
            ("1e3", Quantity::Absolute(1000)),
            ("123", Quantity::Absolute(123)),
            ("0", Quantity::Absolute(0)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in ["", "%", "ten", "-1Gi", "101%", "inf", "NaN", "1 Gi x", "Mi", "1e999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = parse(&text);
        }
    }
}
