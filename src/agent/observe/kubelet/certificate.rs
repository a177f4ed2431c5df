//! How long a certificate is valid: two of the fields of X.509, and nothing else of it.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::super::cni::base64;

/// Tags of DER (X.690 8.1.2).
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, the version, which the first version leaves out.
const VERSION: u8 = 0xa0;

/// From when until when the first certificate of a PEM file is valid.
pub(super) fn validity(pem: &str) -> Option<(Timestamp, Timestamp)> {
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let der = base64(body)?;
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version, serialNumber, signature, issuer, validity, ... (RFC 5280 4.1)
    let (certificate, _) = expect(&der, SEQUENCE)?;
    let (fields, _) = expect(certificate, SEQUENCE)?;
    let fields = expect(fields, VERSION).map_or(fields, |(_, rest)| rest);
    let (_, fields) = expect(fields, INTEGER)?;
    let (_, fields) = expect(fields, SEQUENCE)?;
    let (_, fields) = expect(fields, SEQUENCE)?;
    let (validity, _) = expect(fields, SEQUENCE)?;
    let (not_before, rest) = time(validity)?;
    let (not_after, _) = time(rest)?;
    Some((not_before, not_after))
}

/// The content of a value with this tag, and what follows it.
fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = value(bytes)?;
    (found == tag).then_some((content, rest))
}

/// Tag and content of a value, and what follows it.
fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, short], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        // More than four bytes of length are no certificate.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// A time, as RFC 5280 4.1.2.5 restricts it: whole seconds of UTC, two digits of the year until 2049.
fn time(bytes: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (tag, content, rest) = value(bytes)?;
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let two = |at: usize| text.get(at..at + 2)?.parse::<i8>().ok();
    let (year, at) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let year = i16::from(two(0)?);
            (if year < 50 { 2000 + year } else { 1900 + year }, 2)
        }
        (GENERALIZED_TIME, 14) => (text.get(..4)?.parse().ok()?, 4),
        _ => return None,
    };
    let time = DateTime::new(year, two(at)?, two(at + 2)?, two(at + 4)?, two(at + 6)?, two(at + 8)?, 0).ok()?;
    Some((TimeZone::UTC.to_timestamp(time).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(not_before: (i32, u8, u8), not_after: (i32, u8, u8)) -> String {
        let mut params = rcgen::CertificateParams::new(vec!["node".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(not_before.0, not_before.1, not_before.2);
        params.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").pem()
    }

    #[test]
    fn both_forms_of_time() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let pem = made((2025, 2, 28), (2049, 12, 31));
        assert_eq!(validity(&pem), Some((at("2025-02-28T00:00:00Z"), at("2049-12-31T00:00:00Z"))));
        let key_before = format!(
            "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n{}",
            made((1999, 1, 1), (2051, 6, 7))
        );
        assert_eq!(validity(&key_before), Some((at("1999-01-01T00:00:00Z"), at("2051-06-07T00:00:00Z"))));
    }

    #[test]
    fn what_is_cut_or_is_something_else_is_none() {
        let pem = made((2025, 2, 28), (2026, 2, 28));
        for end in 0..pem.len() - 30 {
            assert_eq!(validity(&pem[..end]), None, "{end}");
        }
        assert_eq!(validity("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"), None);
        assert_eq!(validity("-----BEGIN CERTIFICATE-----\nMIT/////\n-----END CERTIFICATE-----"), None);
    }
}
