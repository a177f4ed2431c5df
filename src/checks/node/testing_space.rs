//! The cases that the checks of file systems share.

use super::super::{Look, Outcome};
use super::testing::{self, Node};
use crate::facts::{Seen, Space};

/// A worker whose root file system has this space.
pub(super) fn with_space(change: impl Fn(&mut Space)) -> Node {
    Node::worker().filesystem(move |filesystem| {
        let Seen::Yes(space) = &mut filesystem.space else { panic!("seen") };
        change(space);
    })
}

pub(super) fn bytes_left(percent: u64) -> Node {
    with_space(|space| space.bytes_available = space.bytes / 100 * percent)
}

pub(super) fn inodes_left(percent: u64) -> Node {
    with_space(|space| space.inodes_available = space.inodes / 100 * percent)
}

pub(super) fn unknown_when_a_file_system_does_not_answer(run: impl Fn(&Look<'_>) -> Outcome) {
    let node = Node::worker().filesystem(|filesystem| filesystem.space = testing::timed_out("statvfs /"));
    assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    let node = Node::worker().edit(|now| now.filesystems = testing::denied("mountinfo"));
    assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
}
