//! The kubeconfig of a CNI plugin: whether it can be used, and until when. Its credentials are looked at, never kept.

use jiff::Timestamp;
use serde_json::Value;

use super::super::host_root::HostRoot;
use super::super::kubelet::kubeconfig::{self, Cluster};
use crate::facts::{CniKubeconfig, LookError, Reason, Seen};

/// A kubeconfig, a token or an authority is some kilobytes; in bytes.
const LIMIT: u64 = 1 << 20;
/// The fields of a user of which one is enough.
const CREDENTIALS: [&str; 7] =
    ["token", "tokenFile", "client-certificate", "client-certificate-data", "username", "exec", "auth-provider"];

/// Looks at the file. Absent when it does not exist.
pub(super) fn look(host: &HostRoot, path: &str) -> Seen<CniKubeconfig> {
    let about = match std::fs::metadata(host.path(path)) {
        Ok(about) => about,
        Err(error) => return Err(LookError::io(path, &error)).into(),
    };
    let modified = about.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
    let mut seen = CniKubeconfig { server: String::new(), fault: None, token_expires_at: None, modified };
    let cluster = match kubeconfig::cluster(host, path) {
        Ok(cluster) => cluster,
        // These are about what it holds; others are about whoever looks.
        Err(error) if matches!(error.reason, Reason::Malformed | Reason::Missing | Reason::WrongKind) => {
            seen.fault = Some(error.detail);
            return Seen::Yes(seen);
        }
        Err(error) => return Seen::Unreadable(error),
    };
    seen.fault = server_fault(&cluster.server).map(str::to_owned).or_else(|| authority_fault(host, &cluster));
    seen.server = cluster.server;
    match user(host, path) {
        Ok(token) => seen.token_expires_at = token.as_deref().and_then(expiry),
        Err(fault) => seen.fault = seen.fault.or(Some(fault)),
    }
    Seen::Yes(seen)
}

/// The token of the user of the current context, if it has one; or why there is nobody to be.
fn user(host: &HostRoot, path: &str) -> Result<Option<String>, String> {
    let text = host.read_text(path, LIMIT).map_err(|error| error.detail)?;
    let file: Value = crate::yaml::parse(&text).map_err(|_| "is not a kubeconfig".to_owned())?;
    let list = |key: &str| file.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let named = |key: &str, name: Option<&Value>| {
        let found = list(key).iter().find(|each| name.is_some() && each.get("name") == name);
        found.or(list(key).first())
    };
    let context = named("contexts", file.get("current-context"));
    let name = context.and_then(|context| context.get("context")?.get("user"));
    let user = named("users", name).and_then(|user| user.get("user"));
    let field = |key: &str| user.and_then(|user| user.get(key));
    let set = |value: &Value| !value.is_null() && value.as_str() != Some("");
    if !CREDENTIALS.iter().any(|key| field(key).is_some_and(set)) {
        return Err("names no credentials".to_owned());
    }
    // As the client libraries do: the file wins.
    match field("tokenFile").and_then(Value::as_str).filter(|file| !file.is_empty()) {
        Some(file) => host.read_text(file, LIMIT).map(Some).map_err(|error| format!("names the token of {error}")),
        None => Ok(field("token").and_then(Value::as_str).map(str::to_owned)),
    }
}

/// `exp` of a JSON web token. Not verified: only the API server can, and a token that lies about its end is no use to
/// anybody.
fn expiry(token: &str) -> Option<Timestamp> {
    let claims: Value = serde_json::from_slice(&decode(token.trim().split('.').nth(1)?)?).ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "what does not fit is refused by the next step")]
    Timestamp::from_second(claims.get("exp")?.as_f64()? as i64).ok()
}

/// What is wrong with a server's address. install-cni writes `https://[ADDRESS]:PORT`, with brackets around IPv4 too.
fn server_fault(server: &str) -> Option<&'static str> {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let scheme = server.split_once("://").is_none_or(|(scheme, _)| scheme == "https" || scheme == "http");
    let authority = rest.split('/').next().unwrap_or_default();
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
    };
    let port_ok = port.is_empty() || port.strip_prefix(':').is_some_and(|it| it.parse::<u16>().is_ok_and(|it| it > 0));
    // What is left of a template that was not filled in.
    let filled = !name.is_empty() && !server.contains("__") && !server.contains(char::is_whitespace);
    (!(scheme && port_ok && filled)).then_some("names a server that is no address")
}

/// What is wrong with the certificate authorities.
fn authority_fault(host: &HostRoot, cluster: &Cluster) -> Option<String> {
    if cluster.insecure_skip_tls_verify {
        return None;
    }
    let (what, pem) = match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) => match decode(data) {
            Some(pem) => ("its certificate-authority-data".to_owned(), pem),
            None => return Some("holds certificate-authority-data that are not base64".to_owned()),
        },
        (None, Some(file)) => match host.read(file, LIMIT) {
            Ok(pem) => (file.clone(), pem),
            Err(error) => return Some(format!("names the authority {error}")),
        },
        // The system's own authorities.
        (None, None) => return None,
    };
    holds_certificate(&pem).err().map(|why| format!("cannot be used: {what} {why}"))
}

/// Whether the first certificate of a PEM file is whole.
fn holds_certificate(pem: &[u8]) -> Result<(), &'static str> {
    let text = String::from_utf8_lossy(pem);
    let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----").ok_or("holds no certificate")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----").ok_or("is cut off")?;
    let der = decode(body).ok_or("holds a certificate that is not base64")?;
    // A SEQUENCE as long as it says (X.690 8.1.3).
    let length = match der.as_slice() {
        [0x30, 0x82, high, low, rest @ ..] => rest.len() == usize::from(u16::from_be_bytes([*high, *low])),
        [0x30, 0x81, short, rest @ ..] | [0x30, short @ 0..=0x7f, rest @ ..] => rest.len() == usize::from(*short),
        _ => false,
    };
    if length { Ok(()) } else { Err("holds a certificate that cannot be decoded") }
}

/// Base64 in both alphabets, with or without padding and line ends.
pub(in crate::agent::observe) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = (expiry(text), server_fault(text), decode(text), holds_certificate(text.as_bytes()));
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A token that ends at this second: header, claims and a signature that nobody looks at.
    pub(in super::super) fn token(claims: &str) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::new();
        for chunk in claims.as_bytes().chunks(3) {
            let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for at in 0..=chunk.len() {
                text.push(char::from(ALPHABET[(bits >> (18 - 6 * at) & 63) as usize]));
            }
        }
        format!("eyJhbGciOiJSUzI1NiJ9.{text}.c2ln")
    }

    fn file(user: &str, cluster: &str) -> Seen<CniKubeconfig> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n    {cluster}\nusers:\n- name: calico\n  user: {user}\ncontexts:\n- name: c\n  context: {{cluster: local, user: calico}}\ncurrent-context: c\n"
        );
        std::fs::write(dir.path().join("calico-kubeconfig"), text).expect("write");
        std::fs::write(dir.path().join("token"), format!("{}\n", token(r#"{"exp":1700000000}"#))).expect("write");
        look(&HostRoot::new(dir.path()), "/calico-kubeconfig")
    }

    fn fault(user: &str, cluster: &str) -> String {
        file(user, cluster).get().and_then(|it| it.fault.clone()).unwrap_or_default()
    }

    const SERVER: &str = "server: https://[10.96.0.1]:443";

    #[test]
    fn a_token_with_an_end() {
        let bound = token(r#"{"aud":["x"],"exp":1700000000,"iat":1699999999}"#);
        let seen = file(&format!("{{token: {bound}}}"), SERVER);
        let seen = seen.get().expect("readable");
        assert_eq!((seen.fault.as_deref(), seen.server.as_str()), (None, "https://[10.96.0.1]:443"));
        assert_eq!(seen.token_expires_at.map(Timestamp::as_second), Some(1_700_000_000));
        assert!(!format!("{seen:?}").contains(&bound), "never kept");
    }

    #[test]
    fn tokens_without_an_end_and_other_credentials() {
        for user in [
            format!("{{token: {}}}", token(r#"{"sub":"a"}"#)),
            "{token: opaque}".into(),
            "{token: a.b.c}".into(),
            format!("{{token: {}}}", token(r#"{"exp":1e300}"#)),
            "{client-certificate-data: eA==, client-key-data: eA==}".into(),
        ] {
            let seen = file(&user, SERVER);
            let seen = seen.get().expect("readable");
            assert_eq!((seen.fault.as_deref(), seen.token_expires_at), (None, None), "{user}");
        }
        let seen = file("{tokenFile: /token}", SERVER);
        assert!(seen.get().is_some_and(|it| it.token_expires_at.is_some()), "{seen:?}");
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let user = "{token: a}";
        assert_eq!(fault("{}", SERVER), "names no credentials");
        assert_eq!(fault("{token: ''}", SERVER), "names no credentials");
        assert!(fault("{tokenFile: /none}", SERVER).starts_with("names the token of /none"));
        assert_eq!(fault(user, "server: ''"), "names no server");
        for server in [
            "https://[]:443",
            "https://[10.0.0.1",
            "ftp://a",
            "https://a:http",
            "https://a:0",
            "https://__KUBERNETES_SERVICE_HOST__:443",
            "https://a b",
        ] {
            assert_eq!(fault(user, &format!("server: '{server}'")), "names a server that is no address", "{server}");
        }
        for server in ["https://a", "http://a:80/path", "https://[fd00::1]:6443", "10.0.0.1:6443"] {
            assert_eq!(fault(user, &format!("server: '{server}'")), "", "{server}");
        }
        let ca = |data: &str| fault(user, &format!("server: https://a\n    {data}"));
        assert!(ca("certificate-authority-data: '%%'").contains("not base64"));
        assert!(ca("certificate-authority-data: eA==").contains("holds no certificate"));
        assert!(ca("certificate-authority: /none.crt").starts_with("names the authority /none.crt"));
        assert_eq!(ca("insecure-skip-tls-verify: true"), "");
    }

    #[test]
    fn certificates_are_whole_or_not() {
        let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).expect("a certificate");
        let pem = made.cert.pem();
        assert_eq!(holds_certificate(pem.as_bytes()), Ok(()));
        assert_eq!(holds_certificate(&pem.as_bytes()[..200]), Err("is cut off"));
        let mut lines: Vec<&str> = pem.lines().collect();
        lines.remove(2);
        assert_eq!(holds_certificate(lines.join("\n").as_bytes()), Err("holds a certificate that cannot be decoded"));
    }

    #[test]
    fn files_that_are_no_kubeconfig() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let host = HostRoot::new(dir.path());
        assert_eq!(look(&host, "/none"), Seen::Absent);
        std::fs::write(dir.path().join("k"), "token: secret\nclusters: [").expect("write");
        let seen = look(&host, "/k");
        let fault = seen.get().and_then(|it| it.fault.clone()).expect("a fault");
        assert!(fault.starts_with("is not a kubeconfig") && !fault.contains("secret"), "{fault}");
        std::fs::write(dir.path().join("k"), "").expect("write");
        assert!(look(&host, "/k").get().is_some_and(|it| it.fault.is_some()));
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
        assert!(look(&host, "/fifo").get().is_some_and(|it| it.fault.as_deref() == Some("is a FIFO, not a file")));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, bytes: Vec<u8>) {
            let _ = (expiry(&text), server_fault(&text), decode(&text), holds_certificate(&bytes));
        }

        #[test]
        fn what_is_encoded_is_decoded(claims: String) {
            let token = token(&claims);
            let middle = token.split('.').nth(1).expect("three parts");
            proptest::prop_assert_eq!(decode(middle), Some(claims.into_bytes()));
        }
    }
}
