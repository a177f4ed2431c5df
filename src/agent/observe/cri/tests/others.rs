//! Runtimes other than containerd: they are found by their sockets, and tell other things of themselves.

use super::*;

#[tokio::test]
async fn each_well_known_socket_is_found_and_the_kubelets_own_before_it() {
    for socket in SOCKETS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |socket: &str| dir.path().join(socket.trim_start_matches('/'));
        let mut source = CriSource::new(HostRoot::new(dir.path()));
        for directory in [socket, "/opt/own.sock"] {
            std::fs::create_dir_all(at(directory).parent().expect("not the root")).expect("mkdir");
        }
        let _found = Fake::start(&at(socket));
        let found = source.look(None, true).await;
        assert!(found.socket == Seen::Yes(socket.to_owned()) && found.status.get().is_some(), "{found:?}");
        let _own = Fake::start(&at("/opt/own.sock"));
        let own = source.look(Some("unix:///opt/own.sock"), true).await;
        assert!(own.socket == Seen::Yes("/opt/own.sock".to_owned()) && own.status.get().is_some(), "{own:?}");
    }
}
