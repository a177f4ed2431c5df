//! A question of DNS, and the header of its answer (RFC 1035, 4.1). No more of an answer is looked at.

/// Length of a header, in bytes.
pub(super) const HEADER: usize = 12;
/// A length of two bytes comes before each message over TCP (RFC 1035, 4.2.2).
pub(super) const FRAMED_HEADER: usize = 2 + HEADER;
/// `RD`, of the third byte: resolve it for me, as resolvers of programs ask.
const RECURSE: u8 = 0x01;
/// `QR`, of the third byte: an answer.
const RESPONSE: u8 = 0x80;
/// `OPCODE`, of the third byte: 0 for a standard query.
const OPCODE: u8 = 0x78;
/// `RCODE`, of the fourth byte, and what says that the server has failed.
const RCODE: u8 = 0x0f;
const SERVFAIL: u8 = 2;
/// Longest label, in bytes.
const LABEL: usize = 63;
/// Types and classes: a host's address, the Internet.
const A: [u8; 2] = [0, 1];
const IN: [u8; 2] = [0, 1];

/// A question for the address of a name, but for its number, which comes first. A label that is longer than one may be is cut.
pub(super) fn question(name: &str) -> Vec<u8> {
    // Flags; one question, no answers, no authorities, nothing more.
    let mut bytes = vec![RECURSE, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(LABEL)];
        bytes.push(u8::try_from(label.len()).unwrap_or_default());
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes.extend(A);
    bytes.extend(IN);
    bytes
}

/// The question as it goes over TCP.
pub(super) fn framed(id: [u8; 2], question: &[u8]) -> Vec<u8> {
    let length = u16::try_from(id.len() + question.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], &id, question].concat()
}

/// Whether a datagram is an answer to the question of this number, whatever it says.
pub(super) fn is_answer(bytes: &[u8], id: [u8; 2]) -> bool {
    bytes.len() >= HEADER && bytes[..2] == id && bytes[2] & (RESPONSE | OPCODE) == RESPONSE
}

/// The same of what comes over TCP, of which these are the first bytes.
pub(super) fn is_framed_answer(bytes: &[u8; FRAMED_HEADER], id: [u8; 2]) -> bool {
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) >= HEADER && is_answer(&bytes[2..], id)
}

/// Whether an answer says that the server has failed.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| flags & RCODE == SERVFAIL)
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((id, bytes)) = data.split_first_chunk::<2>() else { return };
    let answer = is_answer(bytes, *id);
    assert!(!answer || bytes.len() >= HEADER);
    if let Some(head) = bytes.first_chunk::<FRAMED_HEADER>() {
        assert!(!is_framed_answer(head, *id) || is_answer(&head[2..], *id));
    }
    let question = question(&String::from_utf8_lossy(bytes));
    assert!(question.len() <= HEADER - 2 + 3 * bytes.len() + 6, "a byte that is no letter takes three");
    assert!(!is_answer(&[&id[..], &question].concat(), *id), "a question is no answer to itself");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: [u8; 2] = [0xab, 0xcd];

    /// The header of an answer with these flags.
    fn header(flags: [u8; 2]) -> Vec<u8> {
        [&ID[..], &flags, &[0, 1, 0, 0, 0, 0, 0, 0]].concat()
    }

    #[test]
    fn a_question_in_the_bytes_of_the_standard() {
        let bytes = question("kubernetes.default.svc.cluster.local.");
        let (flags, counts) = (&bytes[..2], &bytes[2..10]);
        assert_eq!((flags, counts), (&[1, 0][..], &[0, 1, 0, 0, 0, 0, 0, 0][..]));
        assert_eq!(&bytes[10..], b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\0\0\x01\0\x01");
        let framed = framed(ID, &bytes);
        assert_eq!(framed[..4], [0, u8::try_from(bytes.len() + 2).expect("short"), 0xab, 0xcd]);
        assert_eq!(framed[4..], bytes);
    }

    #[test]
    fn any_answer_with_the_number_of_the_question_counts() {
        // No error, truncated, NXDOMAIN, SERVFAIL, REFUSED.
        for flags in [[0x85, 0x80], [0x87, 0x80], [0x85, 0x83], [0x81, 0x82], [0x80, 0x05]] {
            let bytes = header(flags);
            assert!(is_answer(&bytes, ID), "{flags:02x?}");
            assert!(is_answer(&[&bytes[..], b"whatever comes after it"].concat(), ID));
            assert!(!is_answer(&bytes, [0xab, 0xce]), "to another question");
            for cut in 0..HEADER {
                assert!(!is_answer(&bytes[..cut], ID), "{cut} bytes of it");
            }
        }
    }

    #[test]
    fn of_all_answers_only_servfail_is_a_failure() {
        for code in 0..16 {
            assert_eq!(is_failure(&header([0x85, 0x80 | code])), code == SERVFAIL, "{code}");
        }
        assert!(!is_failure(&[]) && !is_failure(&header([0x82, 0x00])[..3]));
    }

    #[test]
    fn questions_other_operations_and_odd_bytes_are_no_answers() {
        // Our own question thrown back, an update, a status.
        for flags in [[0x01, 0x00], [0xa8, 0x00], [0x90, 0x00]] {
            assert!(!is_answer(&header(flags), ID), "{flags:02x?}");
        }
        assert!(!is_answer(b"HTTP/1.1 400 Bad Request\r\n\r\n", ID));
    }

    #[test]
    fn over_tcp_the_length_has_room_for_a_header() {
        let framed = |length: u16| {
            let bytes = [&length.to_be_bytes()[..], &header([0x85, 0x80])].concat();
            is_framed_answer(bytes.first_chunk().expect("long enough"), ID)
        };
        assert!(framed(12) && framed(54) && framed(u16::MAX));
        assert!(!framed(0) && !framed(11));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_judged(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            fuzz(&bytes);
        }

        #[test]
        fn only_number_and_flags_decide(rest in prop::collection::vec(any::<u8>(), 8..80), flags in any::<[u8; 2]>()) {
            let bytes = [&ID[..], &flags, &rest].concat();
            prop_assert_eq!(is_answer(&bytes, ID), flags[0] & 0xf8 == 0x80);
        }
    }
}
