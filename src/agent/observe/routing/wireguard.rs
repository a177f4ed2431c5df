//! The UDP ports at which WireGuard listens.
//!
//! rtnetlink does not tell them: WireGuard's own family of generic netlink does, to whoever has `CAP_NET_ADMIN`. It puts the
//! private key of the device into the same answer. That is passed over unread, and what was received is overwritten.

use std::collections::BTreeMap;
use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::super::netlink::{Attributes, Failure, Malformed, Netlink, find, put};
use crate::facts::{Link, LookError, Reason, Seen, WIREGUARD};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID` and `CTRL_ATTR_FAMILY_NAME` of `linux/genetlink.h`.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `WG_GENL_NAME`, `WG_CMD_GET_DEVICE`, `WGDEVICE_A_IFINDEX` and `WGDEVICE_A_LISTEN_PORT` of `linux/wireguard.h`.
const NAME: &[u8] = b"wireguard\0";
const GET_DEVICE: u8 = 0;
const IFINDEX: u16 = 1;
const LISTEN_PORT: u16 = 6;
/// The version of both families, and `sizeof(struct genlmsghdr)`: command, version, and two bytes of nothing.
const VERSION: u8 = 1;
const GENLMSG: usize = 4;
/// Calico has one device for each family; so many are asked.
const MOST: usize = 16;

/// A socket whose answers hold secrets.
struct Socket(Netlink);

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.wipe();
    }
}

/// By link, the port of each WireGuard device that has one; absent without such a device.
pub(super) async fn ports(links: &[Link]) -> Seen<BTreeMap<String, u16>> {
    let devices = links.iter().filter(|link| link.kind.as_deref() == Some(WIREGUARD)).take(MOST);
    let devices: Vec<&Link> = devices.collect();
    if devices.is_empty() {
        return Seen::Absent;
    }
    ask(&devices).await.map_err(|failure| told(&failure)).into()
}

fn told(failure: &Failure) -> LookError {
    const WHAT: &str = "ports of WireGuard";
    match failure {
        // There are devices, so that it is not there does not mean that there is nothing to see.
        Failure::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            LookError::new(WHAT, Reason::Unsupported, "this kernel has no such family of generic netlink")
        }
        _ => failure.about(WHAT),
    }
}

async fn ask(devices: &[&Link]) -> Result<BTreeMap<String, u16>, Failure> {
    let mut socket = Socket(Netlink::open(NETLINK_GENERIC)?);
    let family = family(&mut socket.0, NAME).await?;
    let mut ports = BTreeMap::new();
    for link in devices {
        let question = question(GET_DEVICE, IFINDEX, &link.index.to_ne_bytes());
        // What comes behind the message that has the port are peers.
        match socket.0.first(family, &question, port).await {
            Ok(found) => ports.extend(found.map(|port| (link.name.clone(), port))),
            // It went away since the links were looked at.
            Err(Failure::Io(error)) if error.raw_os_error() == Some(Errno::ENODEV as i32) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(ports)
}

/// The number of a family of generic netlink, by its name with the zero at its end.
async fn family(socket: &mut Netlink, name: &[u8]) -> Result<u16, Failure> {
    let mut number = None;
    let question = question(GET_FAMILY, FAMILY_NAME, name);
    socket.ask(CONTROLLER, 0, &question, |_, body| sixteen(body, FAMILY_ID).map(|told| number = told)).await?;
    number.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
}

/// A command of generic netlink with one attribute.
fn question(command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let mut body = vec![command, VERSION, 0, 0];
    put(&mut body, kind, value);
    body
}

/// The port of a device, out of a message about it; none while it has none.
fn port(body: &[u8]) -> Result<Option<u16>, Malformed> {
    Ok(sixteen(body, LISTEN_PORT)?.filter(|port| *port != 0))
}

/// An attribute of 16 bits of an answer of generic netlink.
fn sixteen(body: &[u8], wanted: u16) -> Result<Option<u16>, Malformed> {
    let attributes = body.get(GENLMSG..).ok_or(Malformed("an answer of generic netlink ends in its header"))?;
    let Some(value) = find(Attributes(attributes), wanted)? else { return Ok(None) };
    value.try_into().map(|value| Some(u16::from_ne_bytes(value))).map_err(|_| Malformed("a number is not 2 bytes long"))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(body: &[u8]) {
    assert_ne!(port(body), Ok(Some(0)));
    let _ = sixteen(body, FAMILY_ID);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::agent::observe::netlink::attribute;
    use crate::agent::observe::netns::NetNs;

    proptest! {
        #[test]
        fn any_bytes_are_a_port_or_an_error(body in vec(any::<u8>(), 0..120)) {
            let read = port(&body);
            prop_assert!(body.len() >= GENLMSG || read.is_err());
            fuzz(&body);
        }

        /// The port is found among whatever else the kernel says of a device.
        #[test]
        fn the_port_of_a_device(
            told in any::<u16>(),
            others in vec((7..60_u16, vec(any::<u8>(), 0..40)), 0..6),
            at in any::<prop::sample::Index>(),
        ) {
            let mut parts: Vec<Vec<u8>> = others.iter().map(|(kind, value)| attribute(*kind, value)).collect();
            parts.insert(at.index(parts.len() + 1), attribute(LISTEN_PORT, &told.to_ne_bytes()));
            let body = [vec![GET_DEVICE, VERSION, 0, 0], parts.concat()].concat();
            prop_assert_eq!(port(&body).ok(), Some((told != 0).then_some(told)));
        }
    }

    /// `struct nlattr` one after the other as `wg_get_device_dump` puts them (`drivers/net/wireguard/netlink.c`): port, mark,
    /// index, name, private and public key; then peers.
    #[test]
    fn a_device_as_the_kernel_tells_it() {
        let device = |peers_only: bool| {
            let head = [
                attribute(LISTEN_PORT, &51821_u16.to_ne_bytes()),
                attribute(7, &0_u32.to_ne_bytes()),
                attribute(IFINDEX, &9_u32.to_ne_bytes()),
                attribute(2, b"wireguard.cali\0"),
                attribute(3, &[0xAA; 32]),
                attribute(4, &[0xBB; 32]),
            ];
            let peers = attribute(8 | 0x8000, &attribute(0x8000, &attribute(1, &[0xCC; 32])));
            let head = if peers_only { Vec::new() } else { head.concat() };
            [vec![GET_DEVICE, VERSION, 0, 0], head, peers].concat()
        };
        assert_eq!((port(&device(false)), port(&device(true))), (Ok(Some(51821)), Ok(None)));
    }

    /// The kernel itself answers whoever asks which families it has.
    #[test]
    fn families_of_the_real_kernel() {
        NetNs::new().block_on(|| async {
            let mut socket = Netlink::open(NETLINK_GENERIC).expect("generic netlink");
            assert_eq!(family(&mut socket, b"nlctrl\0").await.expect("its own"), CONTROLLER);
            let none = family(&mut socket, b"nodevitals\0").await.map_err(|failure| failure.about("none"));
            assert!(none.is_err(), "{none:?}");
            assert_eq!(family(&mut socket, b"nlctrl\0").await.expect("after a refusal"), CONTROLLER);
        });
    }

    #[test]
    fn nobody_is_asked_without_a_device_and_a_kernel_without_wireguard_is_told() {
        NetNs::new().block_on(|| async {
            assert_eq!(ports(&[Link::working(2, "eth0", None)]).await, Seen::Absent);
            // No such device, or no such family: which of them depends on the kernel.
            match ports(&[Link::working(4_000_000, "wireguard.cali", Some(WIREGUARD))]).await {
                Seen::Yes(ports) => assert!(ports.is_empty(), "{ports:?}"),
                Seen::Unreadable(error) => assert_eq!(error.what, "ports of WireGuard"),
                Seen::Absent => panic!("there is a device"),
            }
        });
    }
}
