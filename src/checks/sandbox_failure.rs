//! Why a pod sandbox could not be made, in the words of whoever refused: containerd, CRI-O, the kubelet, a CNI plugin.
//!
//! Each of them puts its own words in front of the next one's, so that the cause is at the end. Of the phrases that are
//! known the last one in the text counts; what is not known is told word for word (catalogue R062, R139).

/// A cause, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cause {
    /// What is wrong, as a clause.
    pub(crate) what: &'static str,
    /// What to do next.
    pub(crate) next: &'static str,
}

const ADDRESSES: Cause = Cause {
    what: "no address for pods is left",
    next: "see whether only this worker's blocks are full or the whole pool (`calicoctl ipam show --show-blocks`), release leaked addresses (`calicoctl ipam check`), then enlarge the pool",
};
const BLOCKS: Cause = Cause {
    what: "this worker may have no further block of addresses",
    next: "release leaked addresses of this worker (`calicoctl ipam check`), or raise maxBlocksPerHost",
};
const NO_POOL: Cause = Cause {
    what: "no enabled pool selects this worker",
    next: "compare the pools' nodeSelector and `disabled` with this Node's labels (`calicoctl get ippools -o yaml`)",
};
const CONTENTION: Cause = Cause {
    what: "too many pods ask Calico's datastore for an address at once",
    next: "wait a minute; if it stays, look at the API server's latency and at how many pods are started at once",
};
const NOT_STARTED: Cause = Cause {
    what: "calico-node has not started here since the last boot",
    next: "look at this worker's calico-node pod and its init containers",
};
const CREDENTIALS: Cause = Cause {
    what: "the CNI plugin's credentials are refused",
    next: "restart this worker's calico-node pod, which writes /etc/cni/net.d/calico-kubeconfig anew, and see that only one kube-controllers runs",
};
const API: Cause = Cause {
    what: "the CNI plugin does not reach the API server",
    next: "follow the worker's path to the API server first: its own findings name it",
};
const PLUGIN: Cause = Cause {
    what: "a CNI plugin's program is missing",
    next: "restart this worker's calico-node pod: its init container installs the programs in /opt/cni/bin",
};
const NO_CNI: Cause = Cause {
    what: "the runtime has no CNI configuration",
    next: "look at /etc/cni/net.d, and restart this worker's calico-node pod, which writes its configuration",
};
const RESERVED: Cause = Cause {
    what: "an earlier attempt to make it still runs inside the runtime",
    next: "find what hangs (`ps` for CNI plugins in state D, the disk's latency); restart the runtime once it is gone",
};
const SHIM: Cause = Cause {
    what: "the runtime cannot start the container's shim or runc",
    next: "read the runtime's log for the first such error; look at free memory, process ids and space below /run",
};
const SPACE: Cause =
    Cause { what: "a file system is full", next: "look at `df -h` and `df -i` for /, /run and the runtime's store" };
const PAUSE: Cause = Cause {
    what: "the image of the sandbox itself cannot be had",
    next: "pull it by hand (`crictl pull`), and look at the registry's reachability and at `sandbox_image` of the runtime",
};
const DAMAGED: Cause = Cause {
    what: "the runtime's store is damaged",
    next: "cordon, gather, drain and reload the worker; do not repair the store by hand",
};

/// Phrases as libcalico, libcni, containerd 1.6 to 2.x, CRI-O and the kernel write them.
const PHRASES: &[(&str, Cause)] = &[
    ("IPAM allocated only", ADDRESSES),
    ("Assigned 0 out of", ADDRESSES),
    ("No more free affine blocks", ADDRESSES),
    ("No IPs available in pools", ADDRESSES),
    ("no IP addresses available in range set", ADDRESSES),
    ("per host block limit", BLOCKS),
    ("blocks reached for this node", BLOCKS),
    ("cannot find a qualified ippool", NO_POOL),
    ("no configured Calico pools", NO_POOL),
    ("excessive concurrent IPAM requests", CONTENTION),
    ("/var/lib/calico/nodename", NOT_STARTED),
    ("connection is unauthorized", CREDENTIALS),
    ("Unauthorized", CREDENTIALS),
    ("certificate has expired", CREDENTIALS),
    ("certificate signed by unknown authority", CREDENTIALS),
    ("context deadline exceeded", API),
    ("connection refused", API),
    ("no route to host", API),
    ("i/o timeout", API),
    ("TLS handshake timeout", API),
    ("failed to find plugin", PLUGIN),
    ("cni plugin not initialized", NO_CNI),
    ("cni config uninitialized", NO_CNI),
    ("No CNI configuration file in", NO_CNI),
    ("is reserved for", RESERVED),
    ("failed to start shim", SHIM),
    ("failed to create shim", SHIM),
    ("ttrpc: closed", SHIM),
    ("OCI runtime create failed", SHIM),
    ("cannot allocate memory", SHIM),
    ("no space left on device", SPACE),
    ("failed to get sandbox image", PAUSE),
    ("creating pod sandbox with name", PAUSE),
    ("failed to stat parent", DAMAGED),
    ("failed to get reader from content store", DAMAGED),
    ("structure needs cleaning", DAMAGED),
];

/// The cause that the end of a message names.
pub(crate) fn classify(message: &str) -> Option<Cause> {
    let found = PHRASES.iter().filter_map(|(phrase, cause)| Some((message.rfind(phrase)?, cause)));
    found.max_by_key(|(at, _)| *at).map(|(_, cause)| *cause)
}

/// The end of a message, without the words that runtimes put in front and without identifiers, which differ from pod to pod:
/// the same failure reads the same.
pub(crate) fn tail(message: &str) -> &str {
    const FRONT: [&str; 5] = [
        "failed (add): ",
        "error adding container to network ",
        "to CNI network ",
        "failed to setup network for sandbox ",
        "Final result of CNI ADD was an error. error=",
    ];
    let begins = FRONT.iter().filter_map(|front| Some(message.rfind(front)? + front.len())).max();
    let rest = message[begins.unwrap_or(0)..].trim_matches(['"', '\\', ' ']);
    // `"k8s-pod-network": cause`, `"<sandbox>\": cause`.
    match rest.split_once(": ") {
        Some((name, cause)) if begins.is_some() && !name.contains(' ') => cause.trim_end_matches(['"', '\\']),
        _ => rest,
    }
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    assert!(text.contains(tail(&text)));
    let _ = classify(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages as they were recorded or published: of containerd 1.6 and 2.x, of CRI-O, of their events and logs.
    const MESSAGES: &[(&str, Option<Cause>, &str)] = &[
        (
            r#"Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "f96aa005aedc": cni plugin not initialized"#,
            Some(NO_CNI),
            "cni plugin not initialized",
        ),
        (
            r#"time="2026-11-21T02:47:21.883660510Z" level=error msg="RunPodSandbox for &PodSandboxMetadata{Name:probe-c,Uid:98191204,Namespace:shop,Attempt:0,} failed, error" error="failed to setup network for sandbox \"3ade8acc\": plugin type=\"calico\" failed (add): failed to find plugin \"calico\" in path [/opt/cni/bin]""#,
            Some(PLUGIN),
            r#"failed to find plugin \"calico\" in path [/opt/cni/bin]"#,
        ),
        (
            "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox \"ab\": plugin type=\"calico\" failed (add): failed to request 1 IPv4 addresses. IPAM allocated only 0",
            Some(ADDRESSES),
            "failed to request 1 IPv4 addresses. IPAM allocated only 0",
        ),
        (
            r#"Failed to create pod sandbox: rpc error: code = Unknown desc = failed to create pod network sandbox k8s_vpn-89998f945-w9r9r_kube-system_643f26cb-ada1-4b7a-8590-83afa1f5a4e5_0(1dfae862ac2b): error adding pod kube-system_vpn-89998f945-w9r9r to CNI network "k8s-pod-network": error adding container to network "k8s-pod-network": cannot allocate new block due to per host block limit"#,
            Some(BLOCKS),
            "cannot allocate new block due to per host block limit",
        ),
        (
            r#"failed to create pod network sandbox k8s_a_b_c_0(12): error adding pod b_a to CNI network "k8s-pod-network": plugin type="calico" failed (add): error getting ClusterInformation: connection is unauthorized: Unauthorized"#,
            Some(CREDENTIALS),
            "error getting ClusterInformation: connection is unauthorized: Unauthorized",
        ),
        (
            r#"plugin type="calico" failed (add): error getting ClusterInformation: Get "https://172.21.0.1:443/apis/crd.projectcalico.org/v1/clusterinformations/default": dial tcp 172.21.0.1:443: connect: connection refused"#,
            Some(API),
            r#"error getting ClusterInformation: Get "https://172.21.0.1:443/apis/crd.projectcalico.org/v1/clusterinformations/default": dial tcp 172.21.0.1:443: connect: connection refused"#,
        ),
        (
            r#"failed to setup network for sandbox "ab": plugin type="calico" failed (add): failed to request IPv4 addresses: Assigned 0 out of 1 requested IPv4 addresses; No more free affine blocks and strict affinity enabled"#,
            Some(ADDRESSES),
            "failed to request IPv4 addresses: Assigned 0 out of 1 requested IPv4 addresses; No more free affine blocks and strict affinity enabled",
        ),
        (
            "failed to request IPv4 addresses: Assigned 0 out of 1 requested IPv4 addresses; Need to allocate an IPAM block but could not - limit of 20 blocks reached for this node",
            Some(BLOCKS),
            "failed to request IPv4 addresses: Assigned 0 out of 1 requested IPv4 addresses; Need to allocate an IPAM block but could not - limit of 20 blocks reached for this node",
        ),
        (
            r#"failed to setup network for sandbox "ab": plugin type="calico" failed (add): stat /var/lib/calico/nodename: no such file or directory: check that the calico/node container is running and has mounted /var/lib/calico/"#,
            Some(NOT_STARTED),
            "stat /var/lib/calico/nodename: no such file or directory: check that the calico/node container is running and has mounted /var/lib/calico/",
        ),
        (
            "2026-11-21 02:46:47.042 [ERROR][3002] cni-plugin/plugin.go 580: Final result of CNI ADD was an error. error=no configured Calico pools for node n2",
            Some(NO_POOL),
            "no configured Calico pools for node n2",
        ),
        (
            r#"rpc error: code = Unknown desc = failed to reserve sandbox name "web_shop_1_0": name "web_shop_1_0" is reserved for "3ade8acc""#,
            Some(RESERVED),
            r#"rpc error: code = Unknown desc = failed to reserve sandbox name "web_shop_1_0": name "web_shop_1_0" is reserved for "3ade8acc"#,
        ),
        (
            "failed to create containerd task: failed to start shim: start failed: io.containerd.runc.v2: create new shim socket: mkdir /run/containerd/s: no space left on device",
            Some(SPACE),
            "failed to create containerd task: failed to start shim: start failed: io.containerd.runc.v2: create new shim socket: mkdir /run/containerd/s: no space left on device",
        ),
        (
            r#"failed to setup network for sandbox "ab": plugin type="bridge" failed (add): failed to set bridge addr: "cni0" already has an IP address different from 10.244.1.1/24"#,
            None,
            r#"failed to set bridge addr: "cni0" already has an IP address different from 10.244.1.1/24"#,
        ),
        ("", None, ""),
    ];

    #[test]
    fn the_end_of_a_message_names_the_cause() {
        for (message, cause, end) in MESSAGES {
            assert_eq!(classify(message), *cause, "{message}");
            assert_eq!(tail(message), *end, "{message}");
        }
    }

    #[test]
    fn every_phrase_has_a_cause_that_can_be_read() {
        for (phrase, cause) in PHRASES {
            assert_eq!(classify(phrase), Some(*cause), "{phrase}");
            assert!(!cause.what.ends_with('.') && !cause.next.ends_with('.') && cause.next.len() < 250, "{phrase}");
        }
    }
}
