use super::*;

/// `NAME<TAB>TEXT`: every message that the provider's documents and runbooks quote, as they quote it.
const VERBATIM: &str = include_str!("../../../tests/messages/verbatim.tsv");
/// Symptoms that have no fixed wording, each as several people would tell it.
const SYMPTOMS: &str = include_str!("../../../tests/messages/symptoms.tsv");
/// What kubelet, containerd, kernel, Calico and others write all day.
const ROUTINE: &str = include_str!("../../../tests/messages/routine.log");

fn verbatim() -> impl Iterator<Item = (&'static str, String)> {
    let split = |line: &'static str| line.split_once('\t').expect("two columns");
    VERBATIM.lines().map(split).map(|(name, text)| (name, text.replace("\\n", "\n")))
}

fn names(book: &Book, text: &str) -> Vec<&'static str> {
    search(book, text).iter().map(|found| book.entries[found.entry].record.name).collect()
}

/// Holds that the first answer is the right one.
fn is(book: &Book, text: &str, name: &str, how: &str) {
    assert_eq!(names(book, text).first(), Some(&name), "{how}: {text}");
}

/// A state or a single word: it is nothing but itself, and only capitals may differ.
fn is_word(text: &str) -> bool {
    text.len() < 20 || !text.contains(' ')
}

#[test]
fn every_message_is_found_as_it_is_quoted() {
    let book = Book::open();
    for (name, text) in verbatim() {
        is(&book, &text, name, "verbatim");
    }
}

#[test]
fn capitals_and_signs_do_not_matter() {
    let book = Book::open();
    for (name, text) in verbatim() {
        is(&book, &text.to_uppercase(), name, "upper case");
        is(&book, &format!("  \u{201c}{text}\u{201d}\r\n"), name, "quoted");
    }
}

#[test]
fn wraps_do_not_matter_wherever_they_are() {
    let book = Book::open();
    for (name, text) in verbatim().filter(|(_, text)| !is_word(text)) {
        for width in [20, 37, 61] {
            let letters: Vec<char> = text.chars().collect();
            let lines: Vec<String> = letters.chunks(width).map(|line| line.iter().collect()).collect();
            is(&book, &lines.join("\n"), name, "hard wrap");
            is(&book, &lines.join("\n      "), name, "hard wrap, indented");
        }
        is(&book, &text.replace(' ', "\n> "), name, "a word a line, quoted as mail");
    }
}

#[test]
fn what_stands_before_and_after_does_not_matter() {
    let book = Book::open();
    let frames = [
        ("'classic' infrastructure exception: ", ""),
        ("2024-02-12T14:42:49.280123456Z stderr F ", ""),
        (
            "Feb 12 14:42:49 worker-1 kubelet[812]: E0212 14:42:49.280 812 pod_workers.go:951] ",
            " pod=\"default/web-0\"",
        ),
        ("  Warning  Failed  112s (x201 over 73m)  kubelet  (combined from similar events): ", "\n"),
        ("{\"level\":\"error\",\"msg\":\"", "\",\"ts\":1707748969}"),
    ];
    for (name, text) in verbatim().filter(|(_, text)| !is_word(text)) {
        for (before, after) in frames {
            is(&book, &format!("{before}{text}{after}"), name, before);
        }
    }
}

#[test]
fn placeholders_may_be_filled_in() {
    let book = Book::open();
    let filled = [
        ("<ID>", "kube-dal10-cr9b7371a7fcbe46d08e04f046d5e6d8b4-w1"),
        ("&lt;ID&gt;", "kube-dal10-cr9b7371a7fcbe46d08e04f046d5e6d8b4-w1"),
        ("&lt;provider&gt;", "classic"),
        ("<provider>", "vpc-gen2"),
        ("<Provider>", "Softlayer"),
        ("<code>&lt;vlan id&gt;</code>", "2234945"),
        ("#123456", "#1"),
        ("router_name", "bcr01a.dal10"),
        ("worker_id", "169.1.2.3, 169.1.2.4"),
        ("{{site.data.keyword.cloud_notm}}", "IBM Cloud"),
        ("{{site.data.keyword.containerlong_notm}}", "IBM Cloud Kubernetes Service"),
        ("{{site.data.keyword.registrylong_notm}}", "IBM Cloud Container Registry"),
        ("<resource group>", "Default"),
        ("<resource_group_name>", "team-a"),
        ("<message>", "Provided API key could not be found"),
        ("10.188.156.137", "fd00::1"),
        ("10.242.64.17", "worker-7.example.com"),
        ("172.21.0.1:443", "10.96.0.1:443"),
        ("10.94.227.28,10.94.227.48", "10.0.0.1"),
        ("failed to request 1 ", "failed to request 2 "),
    ];
    let mut count = 0;
    for (name, text) in verbatim() {
        let other = filled.iter().fold(text.clone(), |text, (from, to)| text.replace(from, to));
        if other != text && !other.contains("dial tcp 10.96.0.1:443") {
            is(&book, &other, name, "filled in");
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn contractions_are_the_same_text() {
    let book = Book::open();
    let pairs = [
        ("cannot ", "can't "),
        ("Cannot ", "Can\u{2019}t "),
        ("can't ", "cannot "),
        ("could not ", "couldn't "),
        ("Could not ", "Couldn&#39;t "),
        ("does not ", "doesn't "),
        ("did not ", "didn't "),
    ];
    let mut count = 0;
    for (name, text) in verbatim() {
        for (long, short) in pairs.iter().filter(|(long, _)| text.contains(long)) {
            is(&book, &text.replace(long, short), name, "contracted");
            count += 1;
        }
    }
    assert!(count > 15, "{count}");
}

#[test]
fn a_message_whose_end_is_cut_off_is_still_found() {
    let book = Book::open();
    for (name, text) in verbatim().filter(|(_, text)| !is_word(text) && text.len() > 60) {
        let start: String = text.chars().take(text.chars().count() * 7 / 10).collect();
        for end in ["", "...", "…"] {
            let found = names(&book, &format!("{start}{end}"));
            // What the end alone would tell apart may come with its neighbours.
            assert!(found.contains(&name) || common_start(name, &start), "{name}: {start}{end}: {found:?}");
        }
    }
}

/// Messages whose first part is that of another: the beginning names that one, or asks.
fn common_start(name: &str, start: &str) -> bool {
    (start.starts_with("Failed to create pod sandbox") && name == "NodeIpBlocksExhausted")
        || (start.starts_with("Failed to set NetworkUnavailable") && name == "MasterClusterIpUnreachable")
        || (start.starts_with("Readiness probe failed") && name == "BgpSessionDown")
}

#[test]
fn reworded_messages_are_found_and_marked() {
    let book = Book::open();
    for (text, name) in [
        (
            "the worker instance with id 5 is not found, please review user permissions of the infrastructure",
            "InfraPermissionMissing",
        ),
        (
            "insufficient resources behind the router bcr01, cannot fulfill this request for guests",
            "ZoneCapacityInsufficient",
        ),
    ] {
        let found = search(&book, text);
        assert!(found.iter().any(|found| book.entries[found.entry].record.name == name), "{text}: {found:?}");
        assert!(found.iter().all(|found| found.sure == Sure::Similar), "{text}: {found:?}");
    }
}

#[test]
fn symptoms_are_found_however_they_are_told() {
    let book = Book::open();
    for line in SYMPTOMS.lines() {
        let (name, text) = line.split_once('\t').expect("two columns");
        let text = text.replace("\\n", "\n");
        assert!(names(&book, &text).contains(&name), "{text}: {:?}", names(&book, &text));
        // In a log they are not looked for.
        let log = format!("{text}\n{ROUTINE}");
        assert!(search(&book, &log).iter().all(|found| found.sure != Sure::Similar), "{text}");
    }
    for entry in &book.entries {
        for symptom in &entry.record.symptoms {
            assert!(symptom.split(' ').count() >= 3, "{}: {symptom} is likely to be anywhere", entry.record.name);
        }
    }
}

#[test]
fn two_texts_with_one_cause_and_one_text_with_two() {
    let book = Book::open();
    // The runtimes word it in two ways; the end of the message counts.
    let tail = "error getting ClusterInformation: connection is unauthorized: Unauthorized";
    for start in [
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox \"ab\": plugin type=\"calico\" failed (add): ",
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to create pod network sandbox k8s_a_b_c_0(d): error adding pod b_a to CNI network \"k8s-pod-network\": plugin type=\"calico\" failed (add): ",
    ] {
        is(&book, &format!("{start}{tail}"), "CniKubeconfigInvalid", "tail");
    }
    // One text, several causes: the fact that decides is asked for.
    for text in
        ["IPAM allocated only 0", "NotReady", "Could not place order.", "NetworkUnavailable", "Unknown", "Warning"]
    {
        let found = search(&book, text);
        let record = &book.entries[found[0].entry].record;
        assert!(!record.ask.is_empty() && record.answers.len() > 1, "{text}: {}", record.name);
    }
}

#[test]
fn what_follows_from_another_and_what_is_routine_comes_last() {
    let book = Book::open();
    let describe = "Events:
  Normal   Starting                 44m                kubelet  Starting kubelet.
  Normal   NodeReady                44m                kubelet  Node 10.188.156.137 status is now: NodeReady
  Normal   NodeAllocatableEnforced  42m                kubelet  Updated Node Allocatable limit across pods
  Normal   NodeHasSufficientPID     42m (x7 over 42m)  kubelet  Node 10.188.156.137 status is now: NodeHasSufficientPID
  Normal   Starting                 31m                kubelet  Starting kubelet.
  Warning  InvalidDiskCapacity      31m                kubelet  invalid capacity 0 on image filesystem
  Normal   NodeNotReady             31m                kubelet  Node 10.188.156.137 status is now: NodeNotReady
  Normal   Starting                 27m                kubelet  Starting kubelet.
";
    let found = search(&book, describe);
    let name = |found: &Match| book.entries[found.entry].record.name;
    assert_eq!((name(&found[0]), found[0].count), ("KubeletRestarting", 3));
    assert!(found.iter().any(|found| name(found) == "NodeReadyFlapping"));
    assert_eq!(found.len(), 4, "{found:?}");
}

#[test]
fn a_dns_that_says_it_has_failed_is_found_unless_a_registry_was_asked_for() {
    let book = Book::open();
    let lookup = "dial tcp: lookup api.shop.svc on 172.21.0.10:53: server misbehaving";
    is(&book, &format!("Get \"https://api.shop.svc/\": {lookup}"), "ClusterDnsUnreachable", "Go");
    is(&book, ";; ->>HEADER<<- opcode: QUERY, status: SERVFAIL, id: 9", "ClusterDnsUnreachable", "dig");
    let steps = book.entries.iter().find(|entry| entry.record.name == "ClusterDnsUnreachable").expect("a record");
    assert!(format!("{:?}", steps.record).contains("block `kubernetes` of its Corefile"), "{:?}", steps.record);
    let pull =
        format!("Failed to pull image \"icr.io/x:1\": failed to do request: Head \"https://icr.io/v2/x\": {lookup}");
    is(&book, &pull, "RegistryUnreachable", "a pull");
}

#[test]
fn lists_of_workers_and_conditions_of_nodes_are_read() {
    let book = Book::open();
    let list = "ID                                                 Public IP       Private IP       Machine Type   State              Status                              Zone    Version
kube-dal10-cr9b7371a7fcbe46d08e04f046d5e6d8b4-w1   169.xx.xxx.xxx  10.xxx.xx.xxx    b3c.4x16       provision_failed   Could not place order.              dal10   1.18.15
kube-dal10-cr9b7371a7fcbe46d08e04f046d5e6d8b4-w2   169.xx.xxx.xxx  10.xxx.xx.xxx    b3c.4x16       normal             Ready                               dal10   1.18.15
";
    let found = names(&book, list);
    for name in ["WorkerFailedTransition", "ZoneCapacityInsufficient", "WorkerHealthy"] {
        assert!(found.contains(&name), "{name}: {found:?}");
    }
    assert_eq!(found.last(), Some(&"WorkerHealthy"));
    let details = "State:   critical\nStatus:  Out of disk\n";
    assert_eq!(names(&book, details), ["DiskFull", "WorkerStateCritical"], "what says more comes first");
    let conditions = "  WorkerProblem  True  Sat, 21 Nov 2026  KubeProxyChainsUnhooked  Jumps are gone\n  Ready  True  KubeletReady  kubelet is posting ready status\n";
    assert_eq!(names(&book, conditions), ["KubeProxyChainsUnhooked"]);
    is(&book, "kubeproxychainsunhooked", "KubeProxyChainsUnhooked", "a code in small letters");
}

#[test]
fn a_healthy_node_is_nothing_to_explain() {
    let book = Book::open();
    let conditions = "Conditions:
  Type                 Status  LastHeartbeatTime                 Reason                       Message
  NetworkUnavailable   False   Thu, 07 Oct 2021 00:49:02 -0500   CalicoIsUp                   Calico is running on this node
  MemoryPressure       False   Thu, 07 Oct 2021 00:49:02 -0500   KubeletHasSufficientMemory   kubelet has sufficient memory available
  DiskPressure         False   Thu, 07 Oct 2021 00:49:02 -0500   KubeletHasNoDiskPressure     kubelet has no disk pressure
  PIDPressure          False   Thu, 07 Oct 2021 00:49:02 -0500   KubeletHasSufficientPID      kubelet has sufficient PID available
  Ready                True    Thu, 07 Oct 2021 00:49:02 -0500   KubeletReady                 kubelet is posting ready status
  WorkerProblem        False   Thu, 07 Oct 2021 00:49:02 -0500   WorkerOk                     No problem found.
";
    assert_eq!(names(&book, conditions), [""; 0]);
}

#[test]
fn routine_logs_are_not_known() {
    let book = Book::open();
    let mut count = 0;
    for line in ROUTINE.lines() {
        let found = search(&book, line);
        assert!(found.is_empty(), "{line}: {} {found:?}", book.entries[found[0].entry].record.name);
        count += 1;
    }
    assert!(count >= 200, "{count}");
    assert!(search(&book, ROUTINE).is_empty(), "all at once");
}

#[test]
fn one_line_of_a_long_log_is_found_with_its_place() {
    let book = Book::open();
    let log =
        format!("{}kernel: nf_conntrack: nf_conntrack: table full, dropping packet\n{ROUTINE}", ROUTINE.repeat(20));
    let found = search(&book, &log);
    assert_eq!(found.len(), 1);
    assert_eq!(book.entries[found[0].entry].record.name, "ConntrackFull");
    assert!(log[found[0].at..].starts_with("nf_conntrack: table full"), "{}", &log[found[0].at..][..40]);
}

#[test]
fn slips_of_the_pen_are_offered_what_was_meant() {
    let book = Book::open();
    assert_eq!(near(&book, "ConntrakFull"), ["ConntrackFull"]);
    assert!(near(&book, "CalicoChainMissing").contains(&"CalicoChainsMissing"));
    assert!(near(&book, "somethingelse").is_empty());
}

#[test]
fn patterns_can_be_found() {
    let book = Book::open();
    for entry in &book.entries {
        for text in &entry.record.texts {
            let parts: Vec<usize> = text.split('*').map(|part| squeeze(part).text.len()).collect();
            assert!(parts[0] >= 6, "{}: {text}", entry.record.name);
            assert!(parts.iter().all(|part| *part > 2), "{}: {text}", entry.record.name);
            // A gap between them makes short ones likely to be anywhere.
            assert!(parts.iter().sum::<usize>() >= 8, "{}: {text}", entry.record.name);
        }
    }
}
