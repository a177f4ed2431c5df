use proptest::prelude::*;

use super::*;

fn redacted(text: &str) -> String {
    String::from_utf8(redact(text.as_bytes()).0).expect("text stays text")
}

const WEB_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06bm9kZTpuMSJ9.c2lnbmF0dXJlLW9mLWl0";

#[test]
fn each_kind_of_secret_goes_and_what_stands_around_it_stays() {
    for (text, left) in [
        // kubeconfig
        ("- name: admin\n  user:\n    token: abc.def\n", "- name: admin\n  user:\n    token: [redacted]\n"),
        ("    client-key-data: LS0tLS1CRUdJTg==\n    x: 1\n", "    client-key-data: [redacted]\n    x: 1\n"),
        (
            "{\"user\":{\"password\":\"a \\\" b\",\"username\":\"u\"}}",
            "{\"user\":{\"password\":\"[redacted]\",\"username\":\"u\"}}",
        ),
        // blocks of YAML
        ("a:\n  token: |-\n    one\n    two\n  b: c\n", "a:\n  token: |-\n    [redacted]\n  b: c\n"),
        // JSON in a JSON string
        (r#"{"last":"{\"bgpPassword\":\"x y\",\"a\":1}"}"#, r#"{"last":"{\"bgpPassword\":\"[redacted]\",\"a\":1}"}"#),
        // environment, INI, command lines
        ("export DB_PASSWORD=a b\nHOME=/root\n", "export DB_PASSWORD=[redacted]\nHOME=/root\n"),
        ("kubelet --bootstrap-token abc --v=2", "kubelet --bootstrap-token [redacted] --v=2"),
        ("x --api-key=abc --v=2", "x --api-key=[redacted] --v=2"),
        ("{\"name\": \"DB_PASSWORD\", \"value\": \"x\"}", "{\"name\": \"DB_PASSWORD\", \"value\": \"[redacted]\"}"),
        (
            "- name: API_TOKEN\n  value: x y\n- name: MODE\n  value: z\n",
            "- name: API_TOKEN\n  value: [redacted]\n- name: MODE\n  value: z\n",
        ),
        // what only begins like JSON
        ("[a.auth]\n  password = \"a b\"\n", "[a.auth]\n  password = \"[redacted]\"\n"),
        ("[[a]]\n  token = 'a b'\n", "[[a]]\n  token = '[redacted]'\n"),
        ("{password: \"a b\", x: 1}", "{password: \"[redacted]\", x: 1}"),
        // registries
        ("{\"auths\":{\"r\":{\"auth\":\"dXNlcjpwdw==\"}}}", "{\"auths\":{\"r\":{\"auth\":\"[redacted]\"}}}"),
        // BIRD and what `ss -i` prints of TCP MD5
        ("  password \"s3cret\";\n", "  password \"[redacted]\";\n"),
        (" cubic md5keys:10.0.0.1/32=pw,10.0.0.2/32=pw2 rto:204", " cubic md5keys:[redacted] rto:204"),
        // headers, tokens, URLs
        ("Authorization: Bearer abcdefghij\n", "Authorization: [redacted]\n"),
        ("sent bearer abcdefghij to", "sent bearer [redacted] to"),
        ("proxy http://u:p@ss@host:3128/x", "proxy http://u:[redacted]@host:3128/x"),
        ("key AKIAIOSFODNN7EXAMPLE.", "key [redacted]."),
        ("key AKIAIOSFODNN7EXAMPLE ", "key [redacted] "),
        ("auth-trunc hmac(sha1) 0x0123456789abcdef0123456789abcdef 96", "auth-trunc hmac(sha1) [redacted] 96"),
        ("tokens: [\"a\", \"b\"] x", "tokens: [\"[redacted]\", \"[redacted]\"] x"),
    ] {
        assert_eq!(redacted(text), left);
        check_redacted(text.as_bytes());
    }
    assert_eq!(redacted(&format!("said {WEB_TOKEN} twice")), "said [redacted] twice");
}

#[test]
fn private_keys_go_and_certificates_stay() {
    let pem = |kind: &str| format!("-----BEGIN {kind}-----\nMIIEpAIBAAKCAQEA\nabc+/=\n-----END {kind}-----\n");
    for kind in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
        let text = format!("{}{}after\n", pem("CERTIFICATE"), pem(kind));
        assert_eq!(redacted(&text), format!("{}[redacted]\nafter\n", pem("CERTIFICATE")));
        let json = serde_json::json!({ "file": pem(kind), "next": 1 }).to_string();
        assert_eq!(redacted(&json), r#"{"file":"[redacted]\n","next":1}"#);
    }
    assert_eq!(redacted("-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKC"), "[redacted]", "cut in the middle");
    assert_eq!(redacted("pAIBAAKC\n-----END RSA PRIVATE KEY-----\nafter"), "[redacted]\nafter", "the other half");
    let halves = format!("{}pAIBAAKC\n-----END PRIVATE KEY-----\nafter", pem("PRIVATE KEY"));
    assert_eq!(redacted(&halves), "[redacted][redacted]\nafter", "one, and the other half of another");
    let json = serde_json::json!({ "file": "pAIBAAKC\n-----END PRIVATE KEY-----\nafter", "next": 1 }).to_string();
    assert_eq!(redacted(&json), r#"{"file":"[redacted]\nafter","next":1}"#);
    // What fuzzing found: a second end behind what is no text.
    check_redacted(b"-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\n\xff\0\n-----END RSA PRIVATE KEY----\xff@h");
    // And the name of a secret behind one hyphen.
    check_redacted(b"{\"C ap-----\nMIIE\n-----END RSA PRIVATE KEY-key-data:   http://u:p@h/\"}");
    // And the rest of a key behind the value of a name, in what only begins as JSON does.
    let cut = "{\"a\":{\"r\"auth\":PRIVATE KEY\0MIIE\n-----END RSA PRIVATE KEY-----\nafter\"";
    assert_eq!(redacted(cut), "{\"a\":{\"r\"auth\":[redacted][redacted]\nafter\"");
    check_redacted(cut.as_bytes());
    // A value of two lines before a block: how deep the block is shows in what is left.
    check_redacted(b"token:\"h\n \"keydata:|\n -");
    check_redacted(b"\x02token:-----BEGIN -----END PRIVATE KEY");
    check_redacted(b"password '-----BEGIN PRIVATE KEY\n\x01");
    check_redacted(b"-----BEGIN \"auth\":\"\xff\"-----END PRIVATE KEY");
    check_redacted(b"{\"tokens\":[\"a\n-----BEGIN RSA PRIVATE KEY----\n\"h\":-\n\"d\"]");
    check_redacted(b"tokens: [-----BEGIN PRIVATE KEY-----\nMIIE, b, -----BEGIN PRIVATE KEY-----, c]\n");
    assert_eq!(redacted("it is:x-----BEGIN PRIVATE KEY-----\nMIIE"), "it is:x[redacted]", "right behind a word");
    // A password in which a key begins, whose blanks hid that it goes on.
    assert_eq!(redacted("tp://u:p-----BEGIN RSA PRIVATE KEY)@h/"), "tp://u:[redacted]@h/");
    check_redacted(b"tp://u\xff:p\0\xdc-----BEGIN RSA PRIVATE KEY)@h/\"y.p}w\n");
    check_redacted(b"tp://u:p-----BEGIN PRIVATE KEY) x -----END PRIVATE KEY-----@h/");
}

#[test]
fn a_key_behind_a_name_goes_with_all_of_its_lines() {
    let key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKC\nabc+/=\n";
    for name in ["PRIVATE_KEY=", "privateKey: ", "  - token: ", "x --password ", "it said: Bearer ", "said secret="] {
        for end in ["-----END RSA PRIVATE KEY-----", ""] {
            let left = redacted(&format!("{name}{key}{end}"));
            assert_eq!(left, format!("{name}[redacted]"));
            check_redacted(format!("{name}{key}{end}\nafter: 1\n").as_bytes());
        }
    }
}

#[test]
fn a_long_string_of_quotes_is_searched_once() {
    // Searched from each quote on, this would take hours.
    let json = format!("{{\"a\":\"{}pAIB\\n-----END PRIVATE KEY-----\\nb\"}}", "\\\"".repeat(4 << 20));
    assert_eq!(redacted(&json), r#"{"a":"[redacted]\nb"}"#);
    let json = format!("{{\"a\":\"-----BEGIN CERTIFICATE-----{}pAIB\\n-----END PRIVATE KEY-----\"}}", "\\\"".repeat(9));
    assert_eq!(redacted(&json), format!("{{\"a\":\"-----BEGIN CERTIFICATE-----{}[redacted]\"}}", "\\\""));
}

#[test]
fn what_only_sounds_like_a_secret_stays() {
    for text in [
        "open /var/run/secrets/kubernetes.io/serviceaccount/token: no such file or directory",
        "client-key: /var/lib/kubelet/pki/kubelet-client-current.pem",
        "secrets \"bgp-passwords\" is forbidden",
        "{\"tokenExpiresAt\":\"2026-01-01T00:00:00Z\",\"secretName\":\"n\"}",
        "password:\n  secretKeyRef:\n    name: bgp\n",
        "{\"password\":{\"secretKeyRef\":{\"name\":\"bgp\"}},\"token\":null,\"rotateToken\":true}",
        "blackhole 172.30.40.0/26 proto bird",
        "-A cali-FORWARD -m comment --comment \"cali:token\" -j MARK --set-xmark 0x10000/0x10000",
        "http://10.0.0.1:3128/path@x",
        "tokens: []",
    ] {
        assert_eq!(redacted(text), text);
    }
}

/// Where secrets stand: `§` is the secret.
const PLACES: [&str; 16] = [
    "token: §\n",
    "  bearer-token: \"§\"\n",
    "{\"clientSecret\":\"§\"}",
    "{\"a\":\"{\\\"password\\\":\\\"§\\\"}\"}",
    "DB_PASSWORD=§\n",
    "--token=§ --v=2",
    "--token § --v=2",
    "Authorization: Basic §\n",
    "http://user:§@host/",
    "md5keys:10.0.0.1/32=§ rto",
    "password '§';",
    "private_key = \"§\"",
    "{\"name\":\"X_TOKEN\",\"value\":\"§\"}",
    "secret: >\n  §\n  §\nnext: 1\n",
    "\"passwords\": [\"§\", \"§\"]",
    "api_key=§",
];

proptest! {
    #[test]
    fn no_secret_is_left(
        place in 0..PLACES.len(),
        secret in "[A-Za-z0-9+/=_-]{12,60}",
        before in "([a-z:= \"\\\\]{0,12}[ \n])?",
        after in "\\PC{0,20}",
    ) {
        // A password in a URL has its slashes escaped.
        let secret = if PLACES[place].contains("://") { secret.replace('/', "x") } else { secret };
        // A block has to be deeper than its name.
        let before = if PLACES[place].contains('>') { String::new() } else { before };
        let text = format!("{before}{}{after}", PLACES[place].replace('§', &secret));
        let left = redacted(&text);
        prop_assert!(!left.contains(&secret), "{text:?} -> {left:?}");
    }

    #[test]
    fn anything_comes_back_and_json_stays_json(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\":,= a-z\\\\\n|>-]{0,80}(token|password|Bearer |://)[\\[\\]{}\":,= a-z@\\\\\n|>-]{0,80}") {
        redact(&bytes);
        redact(text.as_bytes());
        let json = serde_json::json!({ "token": text, "x": [text, { "password": { "y": text } }], "secrets": [text] }).to_string();
        let left = redact(json.as_bytes()).0;
        prop_assert!(serde_json::from_slice::<serde_json::Value>(&left).is_ok(), "{json} -> {}", String::from_utf8_lossy(&left));
    }
}
