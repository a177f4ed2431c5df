//! What the fuzz targets in `fuzz/` call: one function for each, which takes any bytes and must come back. Only there
//! with `--cfg fuzzing`, and in tests: there each gets the seeds of its corpus, damaged.

macro_rules! targets {
    ($($(#[$about:meta])* $name:ident => $door:path;)*) => {$(
        $(#[$about])*
        pub fn $name(data: &[u8]) {
            $door(data);
        }
    )*

        #[cfg(test)]
        mod tests {
            $(
                #[test]
                fn $name() {
                    super::damaged::come_back(stringify!($name), super::$name);
                }
            )*
        }
    };
}

#[cfg(test)]
mod damaged;

targets! {
    /// Bundles that somebody gives us, and the texts out of which secrets are taken.
    bundle => crate::bundle::fuzz;
    /// Files of `/etc/cni/net.d`, and what the runtime's configuration says of that directory.
    cni => crate::agent::fuzzing::cni;
    /// Answers of the container runtime.
    cri => crate::agent::fuzzing::cri;
    /// Notifications of the kernel.
    events => crate::agent::fuzzing::events;
    /// Texts that are to be explained.
    explain => crate::cli::fuzz_explain;
    /// The annotation `findings`.
    findings => crate::verdict::fuzz;
    /// Lines of the kernel's log.
    kernel_log => crate::agent::fuzzing::kernel_log;
    /// The kubelet's configuration, kubeconfig and arguments.
    kubelet => crate::agent::fuzzing::kubelet;
    /// What `iptables-legacy-save` prints.
    legacy => crate::agent::fuzzing::legacy;
    /// Framing and attributes of netlink.
    netlink => crate::agent::fuzzing::netlink;
    /// Tables, chains, rules and generations of nf_tables.
    nftables => crate::agent::fuzzing::nftables;
    /// Nodes and Pods, as the API server sends them.
    nodes => crate::aggregator::fuzz;
    /// Files of `/proc`, and `/etc/fstab`.
    proc => crate::agent::fuzzing::proc;
    /// Links, routes, neighbours, addresses and rules of rtnetlink.
    routing => crate::agent::fuzzing::routing;
    /// Why sandboxes fail, in the words of runtimes and plugins.
    sandbox_failure => crate::checks::fuzz_sandbox_failure;
    /// Where runtimes pull from.
    registry => crate::agent::fuzzing::registry;
    /// Sets of ipset.
    ipset => crate::agent::fuzzing::ipset;
    /// Answers of BIRD, and what the kernel says of its sockets and routes.
    bird => crate::agent::fuzzing::bird;
    /// Counters of links and sockets.
    traffic => crate::agent::fuzzing::traffic;
    /// The head of an answer of HTTP, and that of one of DNS.
    http => crate::agent::fuzzing::http;
    /// The map of the cluster, as the agent gets it.
    map => crate::agent::fuzzing::map;
    /// What agents answer and say of the blocks that they route.
    blocks => crate::aggregator::fuzz_blocks;
    /// What the API server says of everything but Nodes.
    surroundings => crate::aggregator::fuzz_surroundings;
}
