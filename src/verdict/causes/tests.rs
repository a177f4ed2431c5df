use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::checks::node::ALL;

/// A finding of the table, or one that a later version may have.
fn finding(code: &str, subject: &str, detail: &str) -> Raised {
    let check = ALL.iter().find(|check| check.code == code);
    Raised {
        code: code.into(),
        severity: check.map_or(Severity::Critical, |check| check.severity),
        area: check.map_or(crate::checks::Area::Runtime, |check| check.area),
        subject: subject.into(),
        since: Timestamp::UNIX_EPOCH,
        detail: detail.into(),
        next: "n".into(),
        caused_by: None,
        times: 1,
        last_cure: None,
    }
}

/// The findings as `CODE` or `CODE<ROOT`, in their order.
fn explained(findings: &[(&str, &str, &str)]) -> Vec<String> {
    let mut list: Vec<Raised> = findings.iter().map(|(code, subject, detail)| finding(code, subject, detail)).collect();
    // One that took what several had is as bad as what it took.
    list.iter_mut().filter(|it| it.code == "TablesFlushed").for_each(|it| it.severity = Severity::Critical);
    explain(&mut list);
    let said = |finding: &Raised| match &finding.caused_by {
        Some(root) => format!("{}<{}", finding.code, root.code),
        None => finding.code.clone(),
    };
    list.iter().map(said).collect()
}

#[test]
fn every_code_has_its_place() {
    let mut placed: BTreeSet<&str> = ALONE.iter().copied().collect();
    for (cause, _, consequences) in RULES {
        placed.insert(cause);
        placed.extend(*consequences);
    }
    let unknown: Vec<&&str> = placed.iter().filter(|code| !ALL.iter().any(|check| check.code == **code)).collect();
    assert!(unknown.is_empty(), "{unknown:?}: no check of a node raises these, so nothing here is about them");
    let missing: Vec<&str> = ALL.iter().map(|check| check.code).filter(|code| !placed.contains(code)).collect();
    assert!(
        missing.is_empty(),
        "{missing:?}: in src/verdict/causes.rs, add to RULES what each of these explains and what explains it, or add it to \
         ALONE if it always is a fault of its own"
    );
    for code in ALONE {
        assert!(!RULES.iter().any(|(cause, _, of)| cause == code || of.contains(code)), "{code} is not alone");
    }
}

#[test]
fn a_kubeconfig_of_the_cni_that_is_damaged_is_a_fault_of_its_own() {
    let with = |cause: &str, what: &str| {
        let detail = format!("The CNI's kubeconfig /x {what}");
        explained(&[(cause, "", ""), ("CniKubeconfigInvalid", "/x", &detail)])
    };
    for cause in ["MasterUnreachable", "MasterClusterIpUnreachable", "KubeProxyChainsMissing", "ConntrackFull"] {
        let reached = with(cause, "names the server [10.96.0.1]:443, which is not reached from here: no answer");
        assert_eq!(reached[1], format!("CniKubeconfigInvalid<{cause}"));
        assert!(with(cause, "names no credentials").contains(&"CniKubeconfigInvalid".to_owned()), "{cause}");
    }
    for what in ["holds a token that expired at 7", "was last written at 7: its token is not renewed and expires at 8"]
    {
        assert!(with("MasterUnreachable", what).contains(&"CniKubeconfigInvalid<MasterUnreachable".to_owned()));
        assert!(with("KubeProxyRulesStale", what).contains(&"CniKubeconfigInvalid".to_owned()));
    }
}

#[test]
fn a_static_pod_that_does_not_run_explains_what_it_is_for() {
    let with = |pod: &str, code: &str| {
        let detail = format!("The static pod {pod} of /m/a.yaml does not run: the runtime has had no sandbox for it");
        explained(&[("StaticPodNotRunning", "/m/a.yaml", &detail), (code, "s", "refused")])
    };
    for (pod, code) in
        [("kube-system/ibm-master-proxy-static", "MasterUnreachable"), ("kube-system/kube-proxy", "KubeProxyDown")]
    {
        assert_eq!(with(pod, code), ["StaticPodNotRunning".to_owned(), format!("{code}<StaticPodNotRunning")]);
        assert!(with("kube-system/audit", code).contains(&code.to_owned()), "{code} is not for another pod");
    }
    let down = explained(&[("ContainerdDown", "c", ""), ("StaticPodNotRunning", "/m/a.yaml", "")]);
    assert_eq!(down, ["ContainerdDown", "StaticPodNotRunning<ContainerdDown"]);
}

#[test]
fn nothing_explains_itself() {
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (cause, _, consequences) in RULES {
        edges.entry(cause).or_default().extend(*consequences);
    }
    for start in edges.keys() {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut next: Vec<&str> = vec![start];
        while let Some(code) = next.pop() {
            next.extend(edges.get(code).into_iter().flatten().filter(|code| reached.insert(code)));
        }
        assert!(!reached.contains(start), "{start} explains itself: {reached:?}");
    }
}

/// Code, subject and detail.
type Found<'a> = (&'a str, &'a str, &'a str);

/// What a worker shows during each recorded incident, and the one headline that it gets.
#[test]
fn recorded_incidents_have_one_root() {
    let cases: [(&[Found<'_>], &[&str]); 10] = [
        // 02: BIRD dead for longer than the graceful restart.
        (
            &[("BgpAllSessionsDown", "/s", ""), ("RemoteBlockRouteMissing", "n1", ""), ("BgpDaemonDown", "/s", "")],
            &["BgpDaemonDown", "BgpAllSessionsDown<BgpDaemonDown", "RemoteBlockRouteMissing<BgpDaemonDown"],
        ),
        // 02, on a peer.
        (
            &[
                ("RemoteBlockRouteMissing", "n2", ""),
                (
                    "BgpSessionDown",
                    "Mesh_10_77_0_12",
                    "The BGP session Mesh_10_77_0_12 to node n2 (10.77.0.12) is Idle",
                ),
            ],
            &["BgpSessionDown", "RemoteBlockRouteMissing<BgpSessionDown"],
        ),
        // 05: kube-proxy dead while the chains of a restarted node were never made.
        (
            &[
                ("KubeProxyRulesStale", "a", ""),
                ("KubeProxyDown", "kube-proxy", ""),
                ("KubeProxyChainsMissing", "IPv4", ""),
            ],
            &["KubeProxyDown", "KubeProxyChainsMissing<KubeProxyDown", "KubeProxyRulesStale<KubeProxyDown"],
        ),
        // 06: no CNI configuration.
        (
            &[("CniNotInitialized", "NetworkReady", ""), ("CniConfigMissing", "/etc/cni/net.d", "")],
            &["CniConfigMissing", "CniNotInitialized<CniConfigMissing"],
        ),
        // 08: containerd hung, and the kubelet has noticed.
        (
            &[("KubeletUnhealthy", "k", ""), ("RuntimeNotReady", "r", ""), ("ContainerdUnresponsive", "/s", "")],
            &[
                "ContainerdUnresponsive",
                "KubeletUnhealthy<ContainerdUnresponsive",
                "RuntimeNotReady<ContainerdUnresponsive",
            ],
        ),
        // A slow runtime, and what the kubelet says of that: not what its port says.
        (
            &[("KubeletUnhealthy", "Ready", "\"PLEG is not healthy: pleg\""), ("ContainerdSlow", "/s", "")],
            &["ContainerdSlow", "KubeletUnhealthy<ContainerdSlow"],
        ),
        (
            &[("KubeletUnhealthy", "kubelet", "does not answer"), ("ContainerdSlow", "/s", "")],
            &["KubeletUnhealthy", "ContainerdSlow"],
        ),
        // 08: and killed.
        (
            &[("CniNotInitialized", "NetworkReady", ""), ("RuntimeNotReady", "r", ""), ("ContainerdDown", "/s", "")],
            &["ContainerdDown", "RuntimeNotReady<ContainerdDown", "CniNotInitialized<ContainerdDown"],
        ),
        // 14: the API takes no writes, and nothing else is wrong.
        (&[("ApiWriteBlocked", "https://10.77.0.1:6443/", "")], &["ApiWriteBlocked"]),
        // 18: one node of a rolling update, if it outlasts the hold-down.
        (
            &[("BgpAllSessionsDown", "/s", ""), ("BgpDaemonDown", "/s", "")],
            &["BgpDaemonDown", "BgpAllSessionsDown<BgpDaemonDown"],
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(explained(found), expected);
    }
}

/// The cluster's DNS is a Service, behind which are Pods of other nodes.
#[test]
fn dns_is_explained_by_what_services_and_ways_to_pods_need() {
    let dns = ("ClusterDnsUnreachable", "10.96.0.10:53", "The cluster's DNS does not answer");
    for (cause, subject) in [
        ("MasterUnreachable", "https://10.0.0.9:6443"),
        ("MasterClusterIpUnreachable", "10.96.0.1:443"),
        ("KubeProxyChainsMissing", "IPv4"),
        ("KubeProxyChainsUnhooked", "IPv4"),
        ("KubeProxyRulesStale", "IPv4 kube-system/kube-dns:dns"),
        ("IptablesBackendSplit", "IPv4"),
        ("ConntrackFull", "nf_conntrack"),
        ("EncapBlocked", "n2 10.244.2.0"),
        ("RemoteBlockRouteMissing", "n2"),
        ("GatewayUnreachable", "10.0.0.1"),
        ("ForeignDropRule", "IPv4 filter OUTPUT"),
        ("HostPolicyBlocksControlPlane", "DNS IPv4"),
    ] {
        assert_eq!(explained(&[dns, (cause, subject, "")]), [cause.to_owned(), format!("{}<{cause}", dns.0)]);
    }
    let chain = [dns, ("MasterClusterIpUnreachable", "10.96.0.1:443", ""), ("KubeProxyChainsUnhooked", "IPv4", "")];
    let root = "KubeProxyChainsUnhooked";
    assert_eq!(
        explained(&chain),
        [root.to_owned(), format!("MasterClusterIpUnreachable<{root}"), format!("{}<{root}", dns.0)]
    );
    // The other family's rules have nothing to do with it, nor a default route that is not used.
    for (cause, subject) in [("IptablesBackendSplit", "IPv6"), ("DefaultRouteMissing", "IPv6"), ("DiskFull", "/")] {
        assert!(explained(&[dns, (cause, subject, "")]).contains(&dns.0.to_owned()), "{cause}");
    }
}

/// 05: nat flushed, kube-proxy alive or dead.
#[test]
fn a_flush_is_the_root_of_what_it_took() {
    let said = explained(&[
        ("MasterClusterIpUnreachable", "https://10.96.0.1/", ""),
        ("KubeProxyChainsMissing", "IPv4", "kube-proxy's chains are missing (IPv4, nf_tables)"),
        ("CalicoChainsMissing", "IPv4", "Calico's chains are missing (IPv4, nf_tables)"),
        ("TablesFlushed", "nf_tables IPv4", "Table nat of IPv4 (nf_tables) was flushed"),
    ]);
    let explained = ["MasterClusterIpUnreachable", "CalicoChainsMissing", "KubeProxyChainsMissing"];
    assert_eq!(said[0], "TablesFlushed");
    assert_eq!(said[1..], explained.map(|code| format!("{code}<TablesFlushed")));
}

#[test]
fn independent_faults_stay_headlines() {
    let stay = |findings: &[(&str, &str, &str)]| {
        let said = explained(findings);
        assert!(said.iter().all(|line| !line.contains('<')), "{said:?}");
    };
    // A file system of data stops no program.
    stay(&[("DiskFull", "/data", ""), ("KubeletDown", "kubelet", "")]);
    stay(&[("DiskFull", "/var/lib/kubeletx", ""), ("KubeletDown", "kubelet", "")]);
    stay(&[("DiskFull", "/", ""), ("DiskPressureImminent", "/data", "")]);
    // A session that is down explains the routes to its own peer.
    stay(&[
        ("BgpSessionDown", "Mesh_10_77_0_12", "The BGP session Mesh_10_77_0_12 to node n2 is Idle"),
        ("RemoteBlockRouteMissing", "n22", ""),
    ]);
    // Addresses of the other family do not need this default route.
    stay(&[("DefaultRouteMissing", "IPv6", ""), ("MasterUnreachable", "https://10.0.0.9:6443/", "")]);
    stay(&[("GatewayUnreachable", "fe80::1", ""), ("MasterUnreachable", "https://10.0.0.9:6443/", "")]);
    // A dead BIRD has nothing to do with Services, nor has a route of a pod.
    stay(&[("BgpDaemonDown", "/s", ""), ("KubeProxyDown", "kube-proxy", ""), ("PodRouteMissing", "a/b 10.0.0.1", "")]);
    stay(&[("PodRouteShadowed", "10.244.0.0/28", ""), ("PodRouteMissing", "a/b 10.244.0.16", "")]);
    stay(&[("OutOfMemory", "system", "The kernel killed java"), ("KubeletDown", "kubelet", "")]);
    stay(&[("KubeProxyChainsMissing", "IPv6", ""), ("KubeProxyChainsUnhooked", "IPv4", "")]);
    stay(&[("TablesFlushed", "nf_tables IPv4", "Table nat of IPv4"), ("KubeProxyChainsMissing", "IPv6", "")]);
    // A wrong clock drops no packet.
    stay(&[
        ("ClockSkewed", "clock", ""),
        ("MasterUnreachable", "https://10.0.0.9:6443", "timed out: no answer to TCP"),
    ]);
}

#[test]
fn subjects_that_match_are_explained() {
    let explains = |cause: (&str, &str, &str), finding: (&str, &str, &str)| {
        let said = explained(&[finding, cause]);
        assert_eq!(said, [cause.0.to_owned(), format!("{}<{}", finding.0, cause.0)]);
    };
    for mount in ["/", "/var", "/var/lib/kubelet"] {
        explains(("DiskFull", mount, ""), ("KubeletDown", "kubelet", ""));
    }
    explains(("DefaultRouteMissing", "any", ""), ("MasterUnreachable", "https://10.0.0.9:6443/", ""));
    explains(("DefaultRouteMissing", "IPv4", ""), ("MasterUnreachable", "https://master.example:6443/", ""));
    explains(("DefaultRouteMissing", "IPv6", ""), ("BgpSessionDown", "Mesh_fd00__1", ""));
    explains(("DefaultRouteMissing", "IPv6", ""), ("MasterUnreachable", "https://[fd00::9]:6443/", ""));
    explains(("OutOfMemory", "system", "The kernel killed kubelet."), ("KubeletDown", "kubelet", ""));
    explains(("PodRouteShadowed", "10.244.0.3/32", ""), ("PodRouteMissing", "default/web 10.244.0.3", ""));
    explains(("PodRouteShadowed", "fd00:10::/64", ""), ("PodRouteMissing", "default/web fd00:10::3", ""));
    explains(("BgpSessionDown", "Mesh_10_77_0_12", ""), ("RemoteBlockRouteMissing", "10.77.0.12", ""));
    let clock =
        "certificate: it has expired, or this node's clock is wrong: this node's is 2 h ahead of the other end's";
    explains(("ClockSkewed", "clock", ""), ("MasterUnreachable", "https://10.0.0.9:6443", clock));
    // A warning whose consequence is critical takes the headline ahead of other criticals of its rank.
    let said = explained(&[
        ("KubeProxyDown", "kube-proxy", ""),
        ("MasterUnreachable", "https://10.0.0.9:6443/", ""),
        ("GatewayUnreachable", "10.0.0.1", ""),
        ("ConntrackNearFull", "nf_conntrack", ""),
    ]);
    assert_eq!(
        said,
        ["GatewayUnreachable", "KubeProxyDown", "ConntrackNearFull", "MasterUnreachable<GatewayUnreachable"]
    );
}

#[test]
fn what_is_only_worth_knowing_explains_nothing() {
    let mut list = vec![finding("DiskFull", "/", ""), finding("KubeletDown", "kubelet", "")];
    list[0].severity = Severity::Info;
    explain(&mut list);
    assert!(list.iter().all(|finding| finding.caused_by.is_none()));
    assert_eq!(list[0].code, "KubeletDown");
}

fn any_finding() -> impl Strategy<Value = Raised> {
    let codes: Vec<&str> = RULES.iter().flat_map(|(cause, _, of)| std::iter::once(cause).chain(*of)).copied().collect();
    let texts = ["/", "/data", "IPv4", "IPv6", "10.0.0.1", "Mesh_10_0_0_1", "n1", "kubelet"];
    let severities = [Severity::Info, Severity::Warning, Severity::Critical];
    let choose = prop::sample::select::<&str>;
    (choose(codes), choose(texts.to_vec()), choose(texts.to_vec()), prop::sample::select(severities.to_vec()))
        .prop_map(|(code, subject, detail, severity)| Raised { severity, ..finding(code, subject, detail) })
}

proptest! {
    #[test]
    fn everything_stays_listed_and_roots_are_roots(mut list in prop::collection::vec(any_finding(), 0..24)) {
        list.sort_by(|a, b| (&a.code, &a.subject).cmp(&(&b.code, &b.subject)));
        list.dedup_by(|a, b| a.code == b.code && a.subject == b.subject);
        let key = |finding: &Raised| (finding.code.clone(), finding.subject.clone(), finding.severity);
        let before: BTreeSet<_> = list.iter().map(key).collect();
        let worst = list.iter().map(|finding| finding.severity).max();
        explain(&mut list);
        prop_assert_eq!(list.iter().map(key).collect::<BTreeSet<_>>(), before);
        for finding in &list {
            let Some(cause) = &finding.caused_by else { continue };
            let root = list.iter().find(|root| cause.is(root)).expect("the root is listed");
            prop_assert!(root.caused_by.is_none() && root.is_problem(), "{:?}", root);
            prop_assert!(!cause.is(finding));
        }
        prop_assert!(list.is_sorted_by_key(|finding| finding.caused_by.is_some()), "roots first");
        // The headline is the worst, or causes it.
        if let Some(head) = list.first() {
            let reached = list.iter().filter(|it| it.is_caused_by(head)).map(|it| it.severity).chain([head.severity]).max();
            prop_assert_eq!(reached, worst);
        }
        let again = list.clone();
        explain(&mut list);
        prop_assert_eq!(list, again);
    }
}
