//! Which chains mean something by their name: one answer for both backends.

/// What a chain's name says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// One of the fixed chains of the kubelet, kube-proxy or Calico: kept.
    Known,
    /// One per Service, endpoint, policy or pod: there can be tens of thousands, so they are only counted.
    PerObject,
    /// Anybody else's: only counted.
    Foreign,
}

/// kube-proxy in iptables mode: one chain per Service port or endpoint (`pkg/proxy/iptables/proxier.go`); the last two
/// are kube-router's, one per policy and per pod, which share its prefix.
const KUBE_PER_OBJECT: [&str; 8] =
    ["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SVL-", "KUBE-XLB-", "KUBE-NWPLCY-", "KUBE-POD-FW-"];

/// Felix: one chain per endpoint, policy, profile or policy group, and the branches of its dispatch trees
/// (`felix/rules/rule_defs.go`), without the leading `cali-`.
const CALICO_PER_OBJECT: [&str; 21] = [
    "tw-",
    "fw-",
    "pi-",
    "po-",
    "pri-",
    "pro-",
    "gi-",
    "go-",
    "th-",
    "fh-",
    "thfw-",
    "fhfw-",
    "sm-",
    "from-wl-dispatch-",
    "to-wl-dispatch-",
    "from-hep-dispatch-",
    "to-hep-dispatch-",
    "from-host-endpoint-",
    "to-host-endpoint-",
    "from-endpoint-mark-",
    "set-endpoint-mark-",
];

/// Prefixes of Calico's chains in its own table of nf_tables, where one table stands for all of iptables' tables.
const CALICO_NATIVE: [&str; 4] = ["filter-", "nat-", "mangle-", "raw-"];

/// What the name of `chain` in `table` says about it. Whether it is a base chain is not asked here.
pub(super) fn meaning(table: &str, chain: &str) -> Meaning {
    if table == "kube-proxy" {
        // `service-<hash>-<namespace>/<name>/<protocol>/<port>` and its like (`pkg/proxy/nftables/proxier.go`).
        return if chain.contains('/') { Meaning::PerObject } else { Meaning::Known };
    }
    if chain.starts_with("KUBE-") {
        return per_object(KUBE_PER_OBJECT.iter().any(|prefix| chain.starts_with(prefix)));
    }
    let short = if table == "calico" {
        CALICO_NATIVE.iter().find_map(|prefix| chain.strip_prefix(prefix)).unwrap_or(chain)
    } else {
        chain
    };
    match short.strip_prefix("cali-") {
        Some(rest) => per_object(CALICO_PER_OBJECT.iter().any(|prefix| rest.starts_with(prefix))),
        None if table == "calico" && chain.contains("cali-") => Meaning::Known,
        None => Meaning::Foreign,
    }
}

fn per_object(yes: bool) -> Meaning {
    if yes { Meaning::PerObject } else { Meaning::Known }
}

#[cfg(test)]
mod tests {
    use super::{Meaning, meaning};

    #[test]
    fn names_are_told_apart() {
        use Meaning::{Foreign, Known, PerObject};
        for (table, chain, expected) in [
            ("nat", "KUBE-SERVICES", Known),
            ("nat", "KUBE-MARK-MASQ", Known),
            ("filter", "KUBE-FIREWALL", Known),
            ("filter", "KUBE-EXTERNAL-SERVICES", Known),
            ("mangle", "KUBE-KUBELET-CANARY", Known),
            ("nat", "KUBE-SVC-ERIFXISQEP7F7OF4", PerObject),
            ("nat", "KUBE-SEP-2HJQZ3KMPVVBF7VH", PerObject),
            ("nat", "KUBE-EXT-LODJXQNF3DWSNB7B", PerObject),
            ("nat", "KUBE-FW-LODJXQNF3DWSNB7B", PerObject),
            ("nat", "KUBE-SVL-LODJXQNF3DWSNB7B", PerObject),
            ("filter", "cali-FORWARD", Known),
            ("filter", "cali-from-wl-dispatch", Known),
            ("filter", "cali-from-wl-dispatch-4", PerObject),
            ("filter", "cali-from-host-endpoint", Known),
            ("filter", "cali-from-hep-forward", Known),
            ("filter", "cali-to-hep-dispatch-e", PerObject),
            ("filter", "cali-tw-cali0ef24ba", PerObject),
            ("filter", "cali-fw-cali0ef24ba", PerObject),
            ("filter", "cali-pri-kns.default", PerObject),
            ("filter", "cali-wl-to-host", Known),
            ("filter", "cali-failsafe-in", Known),
            ("raw", "cali-rpf-skip", Known),
            ("calico", "filter-cali-FORWARD", Known),
            ("calico", "filter-cali-tw-cali0ef24ba", PerObject),
            ("calico", "nat-cali-PREROUTING", Known),
            ("calico", "mangle-cali-from-host-endpoint", Known),
            ("calico", "filter-FORWARD", Foreign),
            ("kube-proxy", "services", Known),
            ("kube-proxy", "mark-for-masquerade", Known),
            ("kube-proxy", "service-ULMVA6XW-default/web/tcp/http", PerObject),
            ("kube-proxy", "endpoint-5OJB2KTY-default/web/tcp/http__10.0.0.5/80", PerObject),
            ("filter", "DOCKER-USER", Foreign),
            ("filter", "ufw-before-input", Foreign),
            ("filter", "my-cali-chain", Foreign),
        ] {
            assert_eq!(meaning(table, chain), expected, "{chain} in {table}");
        }
    }
}
