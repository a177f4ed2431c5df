//! Sets of addresses that rules of the packet filter refer to (`ipset`).

use serde::Serialize;

/// One set of Calico or kube-proxy, without what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IpSet {
    /// Its name, such as `cali40masq-ipam-pools` or `KUBE-CLUSTER-IP`.
    pub name: String,
    /// Its type, such as `hash:net`.
    pub kind: String,
    /// How many entries it has; 1 for any number of them in Calico's own table of nf_tables.
    pub entries: u32,
    /// How many rules and other sets refer to it; in Calico's own table, how many of the rules that are read. The kernel
    /// does not destroy a set as long as there are any.
    pub references: u32,
}
