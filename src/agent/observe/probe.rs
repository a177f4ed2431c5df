//! One way to a server, walked step by step: name, route, TCP, TLS, HTTP. Each step has its own deadline and its own error.

use std::error::Error;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme};

use super::blocking::Blocking;
use crate::facts::{FaultKind, LookError, PathEnd, PathFault, PathLeg, PathStep};

/// Resolvers answer in milliseconds; one of several that is dead costs 5 s by default (`resolv.conf(5)`), and that is slow
/// but no fault: it is asked again at the next look, when the answer has come.
const NAME: Duration = Duration::from_secs(2);
/// Long enough for one SYN that is lost: it is sent again after 1 s.
pub(super) const CONNECT: Duration = Duration::from_millis(2500);
/// A handshake and an answer take milliseconds; so long each.
pub(super) const ANSWER: Duration = Duration::from_secs(2);
/// So many addresses of a name are tried.
const ADDRESSES: usize = 2;
/// The longest head of an answer that is read, in bytes.
const HEAD: usize = 8 << 10;
/// So many header fields are looked at.
const FIELDS: usize = 48;

/// Where to, and what to ask there.
#[derive(Clone)]
pub(super) struct Target {
    /// Name or address.
    pub(super) host: String,
    /// Port.
    pub(super) port: u16,
    /// TLS, with the name that the certificate has to bear; none for plain HTTP.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// What is asked for by HTTP.
    pub(super) path: &'static str,
}

impl Target {
    /// Host and port, as in a URL.
    pub(super) fn to(&self) -> String {
        let brackets = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        format!("{}{}{}:{}", brackets.0, self.host, brackets.1, self.port)
    }
}

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Until the TCP connection stands.
    Connection,
    /// Until HTTP has answered.
    Answer,
}

/// A stream of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Walks it. A leg that is walked to the connection only ends [`PathEnd::Connected`] when that stands.
pub(super) async fn walk(target: &Target, depth: Depth, blocking: &Blocking) -> PathLeg {
    let end = PathEnd::Connected;
    let mut leg = PathLeg { to: target.to(), address: None, port: target.port, source: None, end, clock_ahead: None };
    match steps(target, depth, blocking, &mut leg).await {
        Ok(end) => leg.end = end,
        Err(fault) => leg.end = PathEnd::Fault(fault),
    }
    leg
}

async fn steps(target: &Target, depth: Depth, blocking: &Blocking, leg: &mut PathLeg) -> Result<PathEnd, PathFault> {
    let addresses = resolve(&target.host, blocking).await?;
    let mut first = None;
    let mut connected = None;
    for address in addresses {
        let outcome = async {
            let source = route(address)?;
            Ok((source, connect(SocketAddr::new(address, target.port)).await?))
        };
        match outcome.await {
            Ok((source, stream)) => {
                connected = Some((address, source, stream));
                break;
            }
            Err(fault) => {
                leg.address.get_or_insert(address);
                leg.source = leg.source.or_else(|| route(address).ok());
                first.get_or_insert(fault);
            }
        }
    }
    let Some((address, source, stream)) = connected else {
        let none = || PathFault::new(PathStep::Name, FaultKind::Failed, "the name has no address");
        return Err(first.unwrap_or_else(none));
    };
    (leg.address, leg.source) = (Some(address), Some(source));
    if depth == Depth::Connection {
        return Ok(PathEnd::Connected);
    }
    let mut stream = secure(target, stream).await?;
    let sent = (Timestamp::now(), Instant::now());
    let answer = timeout(ANSWER, ask(&mut *stream, target, &leg.to)).await;
    let (status, date) = answer.unwrap_or_else(|_| Err(PathFault::new(PathStep::Http, FaultKind::TimedOut, "")))?;
    leg.clock_ahead = date.map(|date| ahead(sent.0, sent.1.elapsed(), date));
    Ok(PathEnd::Answered(status))
}

/// The addresses of a name. A resolver can hang for longer than anybody wants to wait, and then is not asked twice.
async fn resolve(host: &str, blocking: &Blocking) -> Result<Vec<IpAddr>, PathFault> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let name = host.to_owned();
    let call = move || {
        let addresses = (name.as_str(), 0).to_socket_addrs();
        let addresses = addresses.map_err(|error| LookError::io(name.as_str(), &error))?;
        let mut all: Vec<IpAddr> = addresses.map(|address| address.ip()).collect();
        all.dedup();
        all.truncate(ADDRESSES);
        Ok(all)
    };
    blocking.run(&format!("addresses of {host}"), NAME, call).await.map_err(|error| {
        let timed_out = error.reason == crate::facts::Reason::TimedOut;
        let kind = if timed_out { FaultKind::TimedOut } else { FaultKind::Failed };
        let detail = error.detail.trim_start_matches("failed to lookup address information: ").to_owned();
        PathFault::new(PathStep::Name, kind, detail)
    })
}

/// The kernel's decision where packets to this address go: the address of this node that it chooses, or why there is no
/// way. Connecting a datagram socket sends nothing.
pub(super) fn route(to: IpAddr) -> Result<IpAddr, PathFault> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        // The port is of no importance: nothing is sent.
        socket.connect((to, 9))?;
        socket.local_addr()
    });
    source.map(|source| source.ip()).map_err(|error| {
        let kind = match error.raw_os_error().map(Errno::from_raw) {
            // `EINVAL` is what a blackhole answers, `EACCES` a route of the kind `prohibit`.
            Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL | Errno::EACCES) => FaultKind::Unreachable,
            Some(Errno::EPERM) => FaultKind::Denied,
            _ => FaultKind::Failed,
        };
        PathFault::new(PathStep::Route, kind, words(&error))
    })
}

/// A TCP connection.
pub(super) async fn connect(to: SocketAddr) -> Result<TcpStream, PathFault> {
    match timeout(CONNECT, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(broken(PathStep::Connect, &error)),
        Err(_) => Err(PathFault::new(PathStep::Connect, FaultKind::TimedOut, "")),
    }
}

async fn secure(target: &Target, stream: TcpStream) -> Result<Box<dyn Stream>, PathFault> {
    let Some((config, name)) = &target.tls else { return Ok(Box::new(stream)) };
    match timeout(ANSWER, TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(broken(PathStep::Tls, &error)),
        Err(_) => Err(PathFault::new(PathStep::Tls, FaultKind::TimedOut, "")),
    }
}

/// Asks, and reads the head of the answer: its status and its date.
async fn ask(stream: &mut dyn Stream, target: &Target, to: &str) -> Result<(u16, Option<i64>), PathFault> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: nodevitals/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        target.path,
        env!("CARGO_PKG_VERSION"),
    );
    let fault = |error: std::io::Error| broken(PathStep::Http, &error);
    stream.write_all(request.as_bytes()).await.map_err(fault)?;
    stream.flush().await.map_err(fault)?;
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Some(head) = read_head(&bytes)? {
            return Ok(head);
        }
        if bytes.len() >= HEAD {
            return Err(PathFault::new(PathStep::Http, FaultKind::Failed, "the answer has no end"));
        }
        if stream.read_buf(&mut bytes).await.map_err(fault)? == 0 {
            return Err(PathFault::new(PathStep::Http, FaultKind::Reset, ""));
        }
    }
}

/// Status and `Date`, in seconds since 1970; none while the head is not whole.
fn read_head(bytes: &[u8]) -> Result<Option<(u16, Option<i64>)>, PathFault> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let nonsense = |what: &str| PathFault::new(PathStep::Http, FaultKind::Failed, what);
    match response.parse(bytes) {
        Ok(httparse::Status::Partial) => return Ok(None),
        // Whoever sends too many fields is an HTTP server all the same.
        Ok(httparse::Status::Complete(_)) | Err(httparse::Error::TooManyHeaders) => {}
        Err(_) => return Err(nonsense("the answer is no HTTP")),
    }
    let status = response.code.ok_or_else(|| nonsense("the answer is no HTTP"))?;
    let date = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("date"));
    Ok(Some((status, date.and_then(|field| date_seconds(field.value)))))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7), in seconds since 1970.
fn date_seconds(text: &[u8]) -> Option<i64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 29 && text.ends_with(" GMT"))?;
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i8>().ok();
    let month = MONTHS.find(text.get(8..11)?).filter(|at| at % 3 == 0)?;
    let month = i8::try_from(month / 3 + 1).ok()?;
    let date = jiff::civil::Date::new(text.get(12..16)?.parse().ok()?, month, number(5, 7)?).ok()?;
    let time = jiff::civil::Time::new(number(17, 19)?, number(20, 22)?, number(23, 25)?.min(59), 0).ok()?;
    Some(jiff::tz::Offset::UTC.to_timestamp(date.to_datetime(time)).ok()?.as_second())
}

/// By how many seconds this node's clock is ahead of one that said `date` between the time a question was `sent` and `took`
/// later. A clock that says so may be anything up to a second further; only what is beyond all that counts.
fn ahead(sent: Timestamp, took: Duration, date: i64) -> i64 {
    let sent = sent.as_millisecond();
    let received = sent.saturating_add(i64::try_from(took.as_millis()).unwrap_or(i64::MAX));
    let date = date.saturating_mul(1000);
    let (least, most) = (sent.saturating_sub(date).saturating_sub(1000), received.saturating_sub(date));
    let certain = if least > 0 { least } else { most.min(0) };
    certain / 1000
}

/// What an error of the kernel, or of TLS inside of one, means.
pub(super) fn broken(step: PathStep, error: &std::io::Error) -> PathFault {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        return PathFault { late: late(error), ..PathFault::new(step, certificate(error), error.to_string()) };
    }
    let kind = match (error.raw_os_error().map(Errno::from_raw), error.kind()) {
        (Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH), _) => FaultKind::Unreachable,
        // What a local packet filter answers to a packet that it drops on its way out.
        (Some(Errno::EPERM | Errno::EACCES), _) => FaultKind::Denied,
        (_, ErrorKind::ConnectionRefused) => FaultKind::Refused,
        (_, ErrorKind::TimedOut) => FaultKind::TimedOut,
        (
            _,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof,
        ) => FaultKind::Reset,
        _ => FaultKind::Failed,
    };
    PathFault::new(step, kind, words(error))
}

fn certificate(error: &TlsError) -> FaultKind {
    use CertificateError as Bad;
    match error {
        TlsError::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => FaultKind::Expired,
        TlsError::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => FaultKind::NotYetValid,
        // An authority of the same name with another key signs what this one cannot confirm.
        TlsError::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => FaultKind::ForeignAuthority,
        TlsError::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => FaultKind::WrongName,
        _ => FaultKind::Failed,
    }
}

/// By how many seconds a certificate's time is over, or, if negative, has not come.
fn late(error: &TlsError) -> i64 {
    let seconds = |time: &UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let (time, limit) = match error {
        TlsError::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => (time, not_after),
        TlsError::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => (time, not_before),
        _ => return 0,
    };
    seconds(time).saturating_sub(seconds(limit))
}

/// For probes that ask whether anybody answers, and not who: nothing secret is sent, and nothing that is said is believed.
pub(super) fn any_certificate() -> ClientConfig {
    let config = ClientConfig::builder();
    let verifier = Arc::new(Anybody(Arc::clone(config.crypto_provider())));
    config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

/// Takes anybody for whom it claims to be.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The innermost words of an error: the outer ones are those of the libraries in between.
pub(super) fn words(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(Some((status, _))) = read_head(data) {
        assert!(status < 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date_seconds(b"Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(date_seconds(b"Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(date_seconds(b"Sat, 31 Dec 2016 23:59:60 GMT"), Some(1_483_228_799));
        let bad: [&[u8]; 5] = [
            b"",
            b"Sunday, 06-Nov-94 08:49:37 GMT",
            b"Sun, 31 Feb 1994 08:49:37 GMT",
            b"Sun, 06 anF 1994 08:49:37 GMT",
            b"Sun, 06 Nov 1994 08:49:37 UTC",
        ];
        for bad in bad {
            assert_eq!(date_seconds(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_clock_is_ahead_only_by_what_is_certain() {
        let at = |milliseconds: i64| Timestamp::from_millisecond(milliseconds).expect("in range");
        let took = Duration::from_millis;
        // The same clock: the date is cut to whole seconds.
        assert_eq!(ahead(at(100_000), took(10), 100), 0);
        assert_eq!(ahead(at(100_990), took(30), 101), 0);
        assert_eq!(ahead(at(100_990), took(5), 100), 0);
        // A slow answer tells less.
        assert_eq!(ahead(at(100_000), took(3000), 103), 0);
        assert_eq!(ahead(at(160_500), took(10), 100), 59);
        assert_eq!(ahead(at(40_500), took(10), 100), -59);
    }

    #[test]
    fn heads() {
        let head = b"HTTP/1.1 403 Forbidden\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n{";
        for cut in 0..head.len() - 1 {
            assert_eq!(read_head(&head[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(read_head(head), Ok(Some((403, Some(784_111_777)))));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(FIELDS + 1));
        assert_eq!(read_head(many.as_bytes()).expect("HTTP").expect("whole").0, 200);
        assert!(read_head(b"\x15\x03\x01\x00\x02\x02\x0a").is_err());
    }
}
