//! Datagrams made by hand: whole, cut, refused and interrupted.

use netlink_packet_core::NLM_F_DUMP;
use proptest::prelude::*;

use super::*;

/// A message as [`request`] writes it, padded.
fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = request(kind, flags, sequence, body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn waiting() -> Answer {
    Answer { sequence: 7, interrupted: false, refusal: None }
}

#[test]
fn a_cut_message_is_an_error_and_the_end() {
    let whole = [message(3, NLM_F_MULTIPART, 7, b"abc"), message(5, 0, 7, b"")].concat();
    let kinds: Vec<_> = Messages(&whole).map(|message| message.map(|it| it.kind)).collect();
    assert_eq!(kinds, [Ok(3), Ok(5)]);
    for (end, why) in [(2, "a message ends in its header"), (17, "a message is cut off"), (30, "a message is cut off")]
    {
        let last = Messages(&whole[..end]).last();
        assert_eq!(last, Some(Err(Malformed(why))), "{end} bytes");
    }
}

#[test]
fn an_answer_is_complete_with_its_last_message() {
    let mut bodies = Vec::new();
    let mut each = |_, body: &[u8]| {
        bodies.push(body.to_vec());
        Ok(())
    };
    let mut answer = waiting();
    let old = message(20, NLM_F_MULTIPART, 6, b"old!");
    let first = message(20, NLM_F_MULTIPART, 7, b"one!");
    assert_eq!(answer.take(&[old, first].concat(), &mut each), Ok(false));
    let last = [message(20, NLM_F_MULTIPART, 7, b"two!"), message(NLMSG_DONE, NLM_F_MULTIPART, 7, &[0; 4])].concat();
    assert_eq!(answer.take(&last, &mut each), Ok(true));
    assert!(!answer.interrupted && answer.refusal.is_none());
    assert_eq!(bodies, [b"one!", b"two!"], "what belongs to an older question is left out");
}

#[test]
fn a_dump_that_does_not_fit_together_is_noticed_even_at_its_end() {
    for kind in [20, NLMSG_DONE] {
        let mut answer = waiting();
        let datagram = message(kind, NLM_F_MULTIPART | NLM_F_DUMP_INTR, 7, &[0; 4]);
        answer.take(&datagram, &mut |_, _| Ok(())).expect("well formed");
        assert!(answer.interrupted);
    }
}

#[test]
fn a_refusal_is_an_error_wherever_it_comes() {
    for kind in [NLMSG_ERROR, NLMSG_DONE] {
        let mut answer = waiting();
        let body = (-(Errno::EPERM as i32)).to_ne_bytes();
        assert_eq!(answer.take(&message(kind, 0, 7, &body), &mut |_, _| Ok(())), Ok(true));
        assert_eq!(answer.refusal.and_then(|error| error.raw_os_error()), Some(Errno::EPERM as i32));
    }
}

#[test]
fn what_the_kernel_refused_says_what_to_do() {
    let denied = refused("nf_tables chains", &io::Error::from_raw_os_error(Errno::EPERM as i32));
    assert_eq!(denied.reason, Reason::Denied);
    assert!(denied.detail.ends_with("needs CAP_NET_ADMIN; run as root"), "{denied}");
    let without = refused("nf_tables", &io::Error::from_raw_os_error(Errno::EPROTONOSUPPORT as i32));
    assert_eq!(without.reason, Reason::Unsupported);
    let interrupted = Failure::Interrupted.about("route dump");
    assert_eq!(interrupted.to_string(), "route dump: changed while it was read");
}

#[test]
fn a_question_is_a_request() {
    let bytes = request(18, NLM_F_DUMP, 3, &[1, 2, 3, 4]);
    assert_eq!(bytes.len(), 20);
    let message = Messages(&bytes).next().expect("one").expect("well formed");
    assert_eq!(message, Message { kind: 18, flags: NLM_F_REQUEST | NLM_F_DUMP, sequence: 3, body: &[1, 2, 3, 4] });
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut answer = Answer { sequence: 0, interrupted: false, refusal: None };
        let _ = answer.take(&bytes, &mut |_, _| Ok(()));
        let _ = Attributes(&bytes).filter(|it| it.is_ok_and(|(_, value)| text(value).is_empty())).count();
    }
}
