//! Which chains mean something by their name, and which are read: one answer for both backends.

use std::net::SocketAddr;

use crate::facts::{Action, Chain, FilterRule, Hook, Table};

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
    match short(table, chain).strip_prefix("cali-") {
        Some(rest) => per_object(CALICO_PER_OBJECT.iter().any(|prefix| rest.starts_with(prefix))),
        None if table == "calico" && chain.contains("cali-") => Meaning::Known,
        None => Meaning::Foreign,
    }
}

/// The name that a chain of Calico's own table has in iptables' tables.
fn short<'a>(table: &str, chain: &'a str) -> &'a str {
    let native = || CALICO_NATIVE.iter().find_map(|prefix| chain.strip_prefix(prefix));
    if table == "calico" { native().unwrap_or(chain) } else { chain }
}

/// Chains of Calico's own table whose rules look into the sets that matter (`felix/rules/nat.go`, `static.go`).
const LOOK_INTO_SETS: [&str; 2] = ["nat-cali-nat-outgoing", "filter-cali-INPUT"];

/// How many chains are followed in one table, and of how many endpoints of one Service the chains are read.
pub(super) const MOST_FOLLOWED: usize = 48;
pub(super) const MOST_ENDPOINTS: usize = 64;

/// The chain of others that is to be read next: a packet goes through it that comes in, leaves or is forwarded, before or
/// after it goes through the chains of Kubernetes.
pub(super) fn to_follow(table: &Table) -> Option<String> {
    // Where the native mode looks Services up.
    if table.name == "kube-proxy" && table.chain("services").is_some_and(|chain| chain.rules.is_none()) {
        return Some("services".to_owned());
    }
    if table.name == "calico" {
        let unread = |name: &&str| table.chain(name).is_some_and(|chain| chain.rules.is_none());
        // What packets of pods go through is Calico's own affair in its own table.
        return LOOK_INTO_SETS.into_iter().find(unread).map(str::to_owned);
    }
    let passed = table.chains.iter().filter(|chain| {
        chain.base.is_none_or(|base| !base.nat && matches!(base.hook, Hook::Input | Hook::Forward | Hook::Output))
    });
    let mut targets = passed.flat_map(Chain::rules).filter_map(FilterRule::target);
    let wanted = |target: &&str| {
        let read = || table.chain(target).is_some_and(|chain| chain.rules.is_some());
        (*target == "KUBE-FORWARD" || meaning(&table.name, target) == Meaning::Foreign) && !read()
    };
    targets.find(wanted).map(str::to_owned)
}

/// The two chains that tell Calico's host endpoints apart.
const HOST_ENDPOINT_ROOTS: [&str; 2] = ["cali-from-host-endpoint", "cali-to-host-endpoint"];

/// Whether a chain may be one that host endpoints lead to.
pub(super) fn is_of_host_endpoints(table: &str, name: &str) -> bool {
    const BEHIND: [&str; 8] = ["fh-", "th-", "failsafe-", "pi-", "po-", "pri-", "pro-", "g"];
    let name = short(table, name);
    let behind = name.strip_prefix("cali-").unwrap_or_default();
    HOST_ENDPOINT_ROOTS.iter().any(|root| name.starts_with(root))
        || BEHIND.iter().any(|start| behind.starts_with(start))
}

/// The chain of Calico's host endpoints that is to be read next: from the two that tell endpoints apart to their own chains, and
/// on to the failsafe ports, policies and profiles of those. Without host endpoints that is two empty chains.
pub(super) fn host_endpoint_to_follow(table: &Table) -> Option<String> {
    let unread = |name: &&str| table.chain(name).is_none_or(|chain| chain.rules.is_none());
    let ours = |name: &str| is_of_host_endpoints(&table.name, name);
    let names = || table.chains.iter().map(|chain| chain.name.as_str());
    let root = names().find(|name| HOST_ENDPOINT_ROOTS.contains(&short(&table.name, name)) && unread(name));
    let mut behind = table.chains.iter().filter(|chain| ours(&chain.name)).flat_map(Chain::rules);
    root.or_else(|| behind.find_map(|rule| rule.target().filter(|target| ours(target) && unread(target))))
        .map(str::to_owned)
}

/// Puts a chain that was read into its table.
pub(super) fn put(table: &mut Table, chain: Chain) {
    if let Some(old) = table.chains.iter_mut().find(|it| it.name == chain.name) {
        *old = chain;
        return;
    }
    let count = match meaning(&table.name, &chain.name) {
        Meaning::PerObject => &mut table.per_object_chains,
        _ => &mut table.foreign_chains,
    };
    *count = count.saturating_sub(1);
    table.chains.push(chain);
}

/// Ports of Services that everything needs, with the end of the names of their chains: 16 digits in base 32 of the SHA-256 of
/// the Service's name and its protocol (`portProtoHash` of `pkg/proxy/iptables/proxier.go`).
const SERVICES: [(&str, &str, &str); 5] = [
    ("default/kubernetes:https", "tcp", "NPX46M4PTMTKRN6Y"),
    ("kube-system/kube-dns:dns", "udp", "TCOU7JCQXEZGVUNU"),
    ("kube-system/kube-dns:dns-tcp", "tcp", "ERIFXISQEP7F7OF4"),
    ("openshift-dns/dns-default:dns", "udp", "BGNS3J6UB7MMLVDO"),
    ("openshift-dns/dns-default:dns-tcp", "tcp", "6BRQXW4I6ZZ3LHZH"),
];

/// Whether everything needs this port of a Service, `namespace/name:port`.
pub(super) fn is_needed(service: &str) -> bool {
    SERVICES.iter().any(|(needed, ..)| *needed == service)
}

/// Service and protocol, if a chain is that of one which everything needs.
pub(super) fn service(table: &str, chain: &str) -> Option<(&'static str, &'static str)> {
    let found = |wanted: &dyn Fn(&str, &str, &str) -> bool| {
        SERVICES.iter().find(|(service, protocol, hash)| wanted(service, protocol, hash)).map(|it| (it.0, it.1))
    };
    if table == "kube-proxy" {
        let name = chain.strip_prefix("service-").or_else(|| chain.strip_prefix("local-"))?;
        return found(&|service, protocol, _| native(name, service, protocol) == Some(""));
    }
    let hash =
        ["KUBE-SVC-", "KUBE-SVL-"].iter().find_map(|prefix| chain.strip_prefix(prefix)).filter(|_| table == "nat")?;
    found(&|_, _, it| it == hash)
}

/// Service and protocol, if a chain of the native mode is that of an endpoint of one which everything needs.
pub(super) fn endpoint(table: &str, chain: &str) -> Option<(&'static str, &'static str)> {
    let name = chain.strip_prefix("endpoint-").filter(|_| table == "kube-proxy")?;
    let mut all = SERVICES.iter().map(|it| (it.0, it.1));
    all.find(|(service, protocol)| native(name, service, protocol).is_some_and(|rest| rest.starts_with("__")))
}

/// What follows `<8 digits>-<namespace>/<name>/<protocol>/<port>` in a name.
fn native<'a>(name: &'a str, service: &str, protocol: &str) -> Option<&'a str> {
    let (service, port) = service.split_once(':')?;
    let rest = name.split_once('-')?.1.strip_prefix(service)?.strip_prefix('/')?;
    rest.strip_prefix(protocol)?.strip_prefix('/')?.strip_prefix(port)
}

/// Whether a chain is that of an endpoint in iptables' tables.
pub(super) fn is_endpoint(chain: &str) -> bool {
    chain.starts_with("KUBE-SEP-")
}

/// Adds where rules send packets to; false when they send them nowhere.
pub(super) fn destinations(rules: &[FilterRule], all: &mut Vec<SocketAddr>) -> bool {
    let before = all.len();
    all.extend(rules.iter().filter_map(|rule| match rule.action {
        Action::Dnat(to) => to,
        _ => None,
    }));
    all.len() > before
}

fn per_object(yes: bool) -> Meaning {
    if yes { Meaning::PerObject } else { Meaning::Known }
}

#[cfg(test)]
mod tests {
    use super::{Meaning, endpoint, meaning, service};

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

    #[test]
    fn services_that_everything_needs_are_known_by_their_chains() {
        let api = Some(("default/kubernetes:https", "tcp"));
        assert_eq!(service("nat", "KUBE-SVC-NPX46M4PTMTKRN6Y"), api);
        assert_eq!(service("nat", "KUBE-SVL-TCOU7JCQXEZGVUNU"), Some(("kube-system/kube-dns:dns", "udp")));
        assert_eq!(service("filter", "KUBE-SVC-NPX46M4PTMTKRN6Y"), None);
        assert_eq!(service("nat", "KUBE-SVC-NPX46M4PTMTKRN6Z"), None);
        assert_eq!(service("kube-proxy", "service-2QRHZV4L-default/kubernetes/tcp/https"), api);
        assert_eq!(service("kube-proxy", "service-2QRHZV4L-default/kubernetes/tcp/https2"), None);
        assert_eq!(endpoint("kube-proxy", "endpoint-5OJB2KTY-default/kubernetes/tcp/https__10.0.0.9/6443"), api);
        assert_eq!(endpoint("kube-proxy", "endpoint-5OJB2KTY-default/kubernetes2/tcp/https__10.0.0.9/6443"), None);
    }
}
