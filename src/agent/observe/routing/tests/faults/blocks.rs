//! Routes to the blocks of other nodes.

use super::{Node, node};

#[test]
fn a_block_of_another_node_without_a_route() {
    let mut node = Node::with_map();
    node.is_well();
    node.ip("route del 172.30.217.0/26");
    node.tells(
        "RemoteBlockRouteMissing",
        "node n2 in 172.30.217.0/26 have no route; packets to it would take `default via",
    );
    node.ip("route add 172.30.217.0/26 via 10.77.0.12 proto 12 metric 1024");
    node.is_well();
    node.ip("-6 route del fd00:30:217::/120");
    node.tells("RemoteBlockRouteMissing", "node n2 in fd00:30:217::/120 have no route; there is no way");
}

#[test]
fn without_the_map_all_routes_at_once() {
    let mut node = node();
    node.bird = true;
    node.is_well();
    for block in ["172.30.217.0/26", "172.30.98.0/26", "fd00:30:217::/120"] {
        node.ip(&format!("route del {block}"));
    }
    node.tells("RemoteBlockRouteMissing", "The routes to pods behind 10.77.0.12, 172.30.217.0/26, are gone");
    node.ip("route add 172.30.217.0/26 via 10.77.0.12 proto 12 metric 1024");
    node.is_well();
}

#[test]
fn what_a_living_owner_took_away_is_forgotten_and_what_nobody_did_is_missed() {
    let mut node = node();
    node.bird = true;
    node.is_well();
    node.ip("route del 172.30.217.0/26");
    node.is_well();
    node.bird = false;
    node.is_well();
    node.ip("route del 172.30.98.0/26");
    node.tells("RemoteBlockRouteMissing", "The routes to pods behind 10.77.0.13, 172.30.98.0/26, are gone");
    node.tells("RemoteBlockRouteMissing", "The routes to pods behind 10.77.0.13");
    node.ip("route add 172.30.98.0/26 via 10.77.0.13 proto 12 metric 1024");
    node.is_well();
    // A wider route of BIRD does as well.
    node.ip("route add 172.30.98.0/24 via 10.77.0.13 proto 12 metric 1024");
    node.ip("route del 172.30.98.0/26");
    node.is_well();
}

#[test]
fn a_link_that_leads_elsewhere_is_not_taken_for_right() {
    let mut node = node();
    node.ip("tuntap add tun0 mode tun");
    node.ip("link set tun0 up");
    node.is_well();
    for _ in 0..3 {
        node.ip("route replace 172.30.98.0/26 via 10.77.0.13 dev tun0 onlink proto 12 metric 1024");
        node.tells("RemoteBlockRouteWrongNextHop", "172.30.98.0/26 leaves by tun0 and no longer by eth0");
    }
    node.ip("route replace 172.30.98.0/26 via 10.77.0.13 proto 12 metric 1024");
    node.is_well();
}

#[test]
fn a_next_hop_that_is_another_one() {
    let mut node = Node::with_map();
    node.is_well();
    node.ip("route replace 172.30.217.0/26 via 10.77.0.99 proto 12 metric 1024");
    node.tells("RemoteBlockRouteWrongNextHop", "172.30.217.0/26 on node n2 leads to 10.77.0.99");
    node.ip("route replace 172.30.217.0/26 via 10.77.0.13 proto 12 metric 1024");
    node.tells("RemoteBlockRouteWrongNextHop", "leads to 10.77.0.13, which is node n3");
    node.ip("route replace blackhole 172.30.217.0/26 proto 12 metric 1024");
    node.tells("RemoteBlockRouteWrongNextHop", "drops the packets");
    node.ip("route replace 172.30.217.0/26 via 10.77.0.12 proto 12 metric 1024");
    node.is_well();
    node.ip("-6 route replace fd00:30:217::/120 via fd00:77::99 dev eth0 proto 12 metric 1024");
    node.tells("RemoteBlockRouteWrongNextHop", "leads to fd00:77::99");
}
