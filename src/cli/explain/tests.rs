use super::*;

fn answer(text: &str, product: Option<Product>, all: bool) -> String {
    let book = Book::open();
    let matches = search::search(&book, text);
    print::Answer { book: &book, text, matches: &matches, product }.table(all, Paint { color: false, width: Some(100) })
}

fn json(text: &str, product: Option<Product>) -> serde_json::Value {
    let book = Book::open();
    let matches = search::search(&book, text);
    let answer = print::Answer { book: &book, text, matches: &matches, product };
    serde_json::to_value(answer.document()).expect("plain data")
}

/// Compares with `tests/golden`, or writes it with `NODEVITALS_BLESS=1`.
fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("NODEVITALS_BLESS").is_some() {
        std::fs::write(&path, text).expect("writable");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{name} differs; NODEVITALS_BLESS=1 writes it:\n{text}");
}

#[test]
fn a_message_is_explained_on_a_page() {
    golden("explain-message.txt", &answer("Could not obtain network VLAN with ID: 1234.", None, false));
}

#[test]
fn a_finding_is_explained_by_its_check() {
    golden("explain-finding.txt", &answer("BgpDaemonDown", Some(Product::IksVpc), false));
}

#[test]
fn a_log_is_explained_cause_first() {
    let log = "Warning  FailedCreatePodSandBox  22s (x7 over 21m)  kubelet  (combined from similar events): Failed to create pod \
               sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox \"ab\": plugin type=\"calico\" failed \
               (add): failed to request 1 IPv4 addresses. IPAM allocated only 0\nNormal  Starting  3m  kubelet  Starting kubelet.\n";
    golden("explain-log.txt", &answer(log, Some(Product::IksClassic), false));
}

#[test]
fn what_is_not_known_is_said() {
    golden("explain-unknown.txt", &answer("ConntrakFull", None, false));
}

#[test]
fn a_product_sees_its_own_commands_alone() {
    let classic = answer("UncleanReboot", Some(Product::IksClassic), false);
    assert!(classic.contains("worker reload") && !classic.contains("worker replace"), "{classic}");
    let vpc = answer("UncleanReboot", Some(Product::IksVpc), false);
    assert!(vpc.contains("worker replace") && !vpc.contains("worker reload"), "{vpc}");
    let other = answer("UncleanReboot", Some(Product::Kubernetes), false);
    assert!(other.contains("kubectl drain") && !other.contains("ibmcloud"), "{other}");
    // It runs on both, and without a product nothing is known: both are shown, and which is which.
    for product in [None, Some(Product::Roks)] {
        let both = answer("UncleanReboot", product, false);
        assert!(both.contains("IKS classic:") && both.contains("IKS VPC:"), "{both}");
    }
    let foreign = answer("Could not place order.", Some(Product::Kubernetes), false);
    assert!(foreign.contains("other products than yours say this"), "{foreign}");
}

#[test]
fn nothing_of_ibm_is_told_to_other_products() {
    let book = Book::open();
    for entry in book.entries.iter().filter(|entry| entry.record.only.is_empty()) {
        let (gather, steps) = book.plan(&entry.record);
        for item in gather.into_iter().chain(steps).filter(|item| Product::Kubernetes.has(item.products)) {
            for (_, command) in item.commands.iter().filter(|(only, _)| Product::Kubernetes.has(only)) {
                assert!(!command.contains("ibmcloud"), "{}: {command}", entry.record.name);
            }
        }
    }
}

#[test]
fn programs_get_everything() {
    let json = json("Kubelet stopped posting node status.", Some(Product::IksVpc));
    assert_eq!(json["known"], true);
    assert_eq!(json["product"], "iks-vpc");
    let first = &json["explanations"][0];
    assert_eq!(first["name"], "KubeletHeartbeatLost");
    assert_eq!(first["seen"]["sure"], "message");
    assert_eq!(first["seen"]["line"], 1);
    for key in ["meaning", "cause", "owner", "notToBeMistakenFor"] {
        assert!(first[key].as_str().is_some_and(|text| text.len() > 10), "{key}: {first}");
    }
    assert!(first["decides"]["answers"].as_array().is_some_and(|answers| answers.len() > 2), "{first}");
    let commands = first["gather"][0]["commands"].as_array().expect("commands");
    assert!(commands[0]["command"].as_str().is_some_and(|line| line.contains("kube-node-lease")), "{first}");
}

#[test]
fn unknown_is_an_answer_for_programs_too() {
    assert_eq!(json("the quick brown fox", None), serde_json::json!({"known": false, "explanations": []}));
}

#[test]
fn nothing_in_a_text_steers_the_terminal() {
    let shown = answer("\x1b[2J\u{202e}nf_conntrack: table full, dropping packet\x07", None, true);
    assert!(shown.contains("ConntrackFull") && !shown.contains(['\x1b', '\x07', '\u{202e}']), "{shown}");
}

#[test]
fn everything_can_be_printed() {
    let book = Book::open();
    let list = print::list(&book, Paint::PLAIN);
    for entry in &book.entries {
        assert!(list.contains(entry.record.name));
        let page = answer(entry.record.name, None, false);
        assert!(page.starts_with(entry.record.name), "{page}");
        assert!(page.contains("Whose: "), "{page}");
    }
    assert_eq!(print::all(&book, None).len(), book.entries.len());
}
