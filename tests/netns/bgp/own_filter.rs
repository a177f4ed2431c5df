//! The node's own packet filter drops BGP.

use anyhow::Result;

use super::{Mesh, both};

/// 10.0.0.1 is who this node connects to, 10.0.0.3 who connects to it: either way its own rule is told, and how often it matched.
#[test]
fn the_nodes_own_filter_drops_the_port() -> Result<()> {
    let out = "-p tcp --dport 179 -j DROP";
    both(|version| {
        let mesh = Mesh::new(version)?;
        let run = |command: &str| mesh.node.run(&["sh", "-c", command]);
        for (add, remove, place) in [
            ("iptables-nft -I OUTPUT", "iptables-nft -D OUTPUT", "in OUTPUT of table IPv4 filter (nf_tables)"),
            (
                "iptables-legacy -I OUTPUT",
                "iptables-legacy -D OUTPUT",
                "in OUTPUT of table IPv4 filter (legacy iptables)",
            ),
        ] {
            run(&format!("{add} {out}"))?;
            mesh.bird.tell(&["restart", "Mesh_10_0_0_1"])?;
            let checked = mesh.finds("BgpPortBlocked", place);
            let detail = checked.finding("BgpPortBlocked")?["detail"].to_string();
            assert!(detail.contains("This node itself keeps the BGP peer 10.0.0.1 away"), "{detail}");
            mesh.finds("BgpPortBlocked", "it has matched at least ");
            run(&format!("{remove} {out}"))?;
            mesh.clears();
        }
        let table =
            "table inet guard { chain in { type filter hook input priority -5; tcp dport 179 counter drop; }; }";
        mesh.node.feed(&["nft", "-f", "-"], table)?;
        // By this side: the peer's farewell would be dropped too.
        mesh.bird.tell(&["restart", "Mesh_10_0_0_3"])?;
        let checked = mesh.finds("BgpPortBlocked", "BGP peer 10.0.0.3 away");
        let detail = checked.finding("BgpPortBlocked")?["detail"].to_string();
        assert!(detail.contains("in in of table inet guard (nf_tables)"), "{detail}");
        mesh.finds("BgpPortBlocked", "it has matched at least ");
        mesh.node.run(&["nft", "delete", "table", "inet", "guard"])?;
        mesh.clears();
        Ok(())
    })
}
