//! Whether the kernel has the routes that BIRD has for it.

use std::collections::HashSet;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::super::netlink::{Malformed, Netlink, find, refused};
use crate::facts::{Family, LookError};

/// `RTM_NEWROUTE` and `RTM_GETROUTE` of `linux/rtnetlink.h`.
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// `RTPROT_BIRD`.
const BIRD: u8 = 12;
/// `RTA_DST`, and `sizeof(struct rtmsg)`.
const DESTINATION: u16 = 1;
const HEADER: usize = 12;
/// `AF_INET`, `AF_INET6`.
const INET: u8 = 2;
const INET6: u8 = 10;

/// Takes the destinations of the kernel's routes of BIRD out of `wanted`, which are those it should have.
pub(super) async fn subtract(family: Family, wanted: &HashSet<IpNet>) -> Result<HashSet<IpNet>, LookError> {
    let what = "route dump";
    let mut socket = Netlink::open(NETLINK_ROUTE).map_err(|error| refused(what, &error))?;
    let mut question = [0; HEADER];
    question[0] = if family == Family::V4 { INET } else { INET6 };
    let take = |missing: &mut HashSet<IpNet>, kind, body: &[u8]| {
        if kind == NEW_ROUTE
            && let Some(destination) = bird_route(body)?
        {
            missing.remove(&destination);
        }
        Ok(())
    };
    socket.whole(what, (GET_ROUTE, &question), || wanted.clone(), take).await
}

/// The destination of a route, if BIRD made it.
fn bird_route(body: &[u8]) -> Result<Option<IpNet>, Malformed> {
    let Some((&[family, length, _, _, _, protocol, ..], attributes)) = body.split_first_chunk::<HEADER>() else {
        return Err(Malformed("a route ends in its header"));
    };
    if protocol != BIRD {
        return Ok(None);
    }
    let destination = find(super::super::netlink::Attributes(attributes), DESTINATION)?;
    let address = match (family, destination) {
        (INET, None) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        (INET6, None) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        (INET, Some(bytes)) => match <[u8; 4]>::try_from(bytes) {
            Ok(bytes) => bytes.into(),
            Err(_) => return Err(Malformed("a destination is no address")),
        },
        (INET6, Some(bytes)) => match <[u8; 16]>::try_from(bytes) {
            Ok(bytes) => bytes.into(),
            Err(_) => return Err(Malformed("a destination is no address")),
        },
        _ => return Ok(None),
    };
    Ok(IpNet::new(address, length).ok())
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    let _ = bird_route(data);
}

#[cfg(test)]
mod tests {
    use super::super::super::netns::NetNs;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn routes_of_others_do_not_count() {
        let namespace = NetNs::new();
        namespace.command("ip", &["route", "add", "blackhole", "10.244.1.0/26", "proto", "bird"]);
        namespace.command("ip", &["route", "add", "blackhole", "10.244.2.0/26", "proto", "static"]);
        namespace.command("ip", &["route", "add", "blackhole", "default", "proto", "bird"]);
        let wanted: HashSet<IpNet> =
            ["10.244.1.0/26", "10.244.2.0/26", "0.0.0.0/0"].map(|prefix| prefix.parse().expect("a prefix")).into();
        let missing = namespace.block_on(|| subtract(Family::V4, &wanted)).expect("the kernel answers");
        assert_eq!(missing, HashSet::from(["10.244.2.0/26".parse().expect("a prefix")]));
    }

    proptest! {
        #[test]
        fn no_route_makes_it_panic(mut body: Vec<u8>) {
            bird_route(&body).ok();
            if body.len() > 5 {
                body[0] = INET;
                body[5] = BIRD;
                bird_route(&body).ok();
            }
        }
    }
}
