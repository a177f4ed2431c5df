//! The checks of one node: one file each, and one row each in [`ALL`].

mod api_write_blocked;
mod bgp_all_sessions_down;
mod bgp_daemon_down;
mod bgp_mesh_incomplete;
mod bgp_password_mismatch;
mod bgp_port_blocked;
mod bgp_session_down;
mod bird_kernel_sync_broken;
mod block_blackhole_missing;
mod calico_chains_missing;
mod calico_chains_unhooked;
mod calico_hook_order_wrong;
mod clock_skewed;
mod cluster_dns_unreachable;
mod cni_binary_missing;
mod cni_config_conflict;
mod cni_config_invalid;
mod cni_config_missing;
mod cni_kubeconfig_invalid;
mod cni_nodename_mismatch;
mod cni_not_initialized;
mod conntrack_full;
mod conntrack_near_full;
mod containerd_down;
mod containerd_slow;
mod containerd_store_corrupt;
mod containerd_unresponsive;
mod default_route_missing;
mod disk_full;
mod disk_io_errors;
mod disk_pressure_imminent;
mod encap_blocked;
mod ephemeral_ports_near_full;
mod fd_exhaustion_imminent;
mod filesystem_errors;
mod filesystem_read_only;
mod foreign_drop_rule;
mod forward_policy_drop;
mod gateway_unreachable;
mod hardware_errors;
mod host_policy_blocks_control_plane;
mod image_fs_stats_missing;
mod inodes_exhausted;
mod inodes_exhaustion_imminent;
mod io_pressure_high;
mod ip_forward_disabled;
mod ip_set_missing;
mod iptables_backend_split;
mod iptables_lock_contention;
mod kernel_oops;
mod kube_proxy_chains_missing;
mod kube_proxy_chains_unhooked;
mod kube_proxy_down;
mod kube_proxy_rules_stale;
mod kubelet_cert_expiring;
mod kubelet_down;
mod kubelet_restarting;
mod kubelet_unhealthy;
mod link_errors;
mod machine_identity_changed;
mod master_cluster_ip_unreachable;
mod master_path_partial;
mod master_unreachable;
mod memory_pressure_imminent;
mod mtu_mismatch;
mod node_files_damaged;
mod node_overcommitted;
mod out_of_memory;
mod pid_pressure_imminent;
mod pod_route_missing;
mod pod_route_shadowed;
mod pod_route_stale;
mod pod_sandbox_failing;
mod policy_routing_hijack;
mod registry_unreachable;
mod remote_block_route_missing;
mod remote_block_route_wrong_next_hop;
mod rp_filter_strict;
mod runtime_not_ready;
mod runtime_object_leak;
mod shim_leak;
mod static_pod_not_running;
mod static_route_added;
mod tables_flushed;
mod task_hung;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_space;
mod tunnel_device_missing;
mod unclean_reboot;
mod unregister_net_device;
mod vpe_gateway_suspected;
mod vpn_interface_added;
mod worker_cut_from_master_only;
mod worker_firewall_blocked;
mod worker_unreachable_from_peers;

use std::time::Duration;

use super::{Check, Look, Outcome};

/// Every check, causes before consequences (catalogue R040): among findings of one severity the first takes the headline.
pub const ALL: &[&Check] = &[
    &machine_identity_changed::CHECK,
    &hardware_errors::CHECK,
    &disk_io_errors::CHECK,
    &unclean_reboot::CHECK,
    &filesystem_read_only::CHECK,
    &clock_skewed::CHECK,
    &filesystem_errors::CHECK,
    &node_files_damaged::CHECK,
    &kernel_oops::CHECK,
    &task_hung::CHECK,
    &unregister_net_device::CHECK,
    &disk_full::CHECK,
    &inodes_exhausted::CHECK,
    &out_of_memory::CHECK,
    &disk_pressure_imminent::CHECK,
    &inodes_exhaustion_imminent::CHECK,
    &node_overcommitted::CHECK,
    &memory_pressure_imminent::CHECK,
    &io_pressure_high::CHECK,
    &pid_pressure_imminent::CHECK,
    &fd_exhaustion_imminent::CHECK,
    &kubelet_down::CHECK,
    &kubelet_unhealthy::CHECK,
    &kubelet_restarting::CHECK,
    &kubelet_cert_expiring::CHECK,
    &static_pod_not_running::CHECK,
    &default_route_missing::CHECK,
    &gateway_unreachable::CHECK,
    &worker_firewall_blocked::CHECK,
    &vpe_gateway_suspected::CHECK,
    &master_unreachable::CHECK,
    &master_cluster_ip_unreachable::CHECK,
    &master_path_partial::CHECK,
    &registry_unreachable::CHECK,
    &worker_cut_from_master_only::CHECK,
    &worker_unreachable_from_peers::CHECK,
    &api_write_blocked::CHECK,
    &containerd_store_corrupt::CHECK,
    &containerd_down::CHECK,
    &containerd_unresponsive::CHECK,
    &runtime_not_ready::CHECK,
    &runtime_object_leak::CHECK,
    &containerd_slow::CHECK,
    &shim_leak::CHECK,
    &image_fs_stats_missing::CHECK,
    &cni_config_missing::CHECK,
    &cni_config_invalid::CHECK,
    &cni_binary_missing::CHECK,
    &cni_config_conflict::CHECK,
    &cni_kubeconfig_invalid::CHECK,
    &cni_nodename_mismatch::CHECK,
    &cni_not_initialized::CHECK,
    &pod_sandbox_failing::CHECK,
    &ip_forward_disabled::CHECK,
    &link_errors::CHECK,
    &tunnel_device_missing::CHECK,
    &policy_routing_hijack::CHECK,
    &pod_route_shadowed::CHECK,
    &bgp_daemon_down::CHECK,
    &bgp_password_mismatch::CHECK,
    &bgp_port_blocked::CHECK,
    &bgp_all_sessions_down::CHECK,
    &bgp_session_down::CHECK,
    &bgp_mesh_incomplete::CHECK,
    &bird_kernel_sync_broken::CHECK,
    &encap_blocked::CHECK,
    &remote_block_route_wrong_next_hop::CHECK,
    &remote_block_route_missing::CHECK,
    &pod_route_missing::CHECK,
    &block_blackhole_missing::CHECK,
    &rp_filter_strict::CHECK,
    &mtu_mismatch::CHECK,
    &pod_route_stale::CHECK,
    &vpn_interface_added::CHECK,
    &static_route_added::CHECK,
    &tables_flushed::CHECK,
    &conntrack_full::CHECK,
    &forward_policy_drop::CHECK,
    &calico_chains_missing::CHECK,
    &calico_chains_unhooked::CHECK,
    &kube_proxy_down::CHECK,
    &kube_proxy_chains_missing::CHECK,
    &kube_proxy_chains_unhooked::CHECK,
    &host_policy_blocks_control_plane::CHECK,
    &ip_set_missing::CHECK,
    &iptables_lock_contention::CHECK,
    &kube_proxy_rules_stale::CHECK,
    &iptables_backend_split::CHECK,
    &foreign_drop_rule::CHECK,
    &calico_hook_order_wrong::CHECK,
    &conntrack_near_full::CHECK,
    &ephemeral_ports_near_full::CHECK,
    &cluster_dns_unreachable::CHECK,
];

/// The code of an unclean reboot.
pub(crate) const UNCLEAN_REBOOT: &str = "UncleanReboot";
/// From an unclean reboot nothing is to be feared after this time, if nothing showed.
pub(crate) const REBOOT_STANDS: Duration = Duration::from_secs(3600);

/// The position of a code in [`ALL`]: its rank among causes. Codes that are not there come last.
pub(crate) fn rank(code: &str) -> usize {
    ALL.iter().position(|check| check.code == code).unwrap_or(ALL.len())
}

/// Whether Calico's policy for this host keeps it from its control plane.
pub(super) fn host_policy(look: &Look<'_>) -> Outcome {
    (host_policy_blocks_control_plane::CHECK.run)(look)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_file_in_this_folder_is_in_the_table() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/checks/node");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .expect("this folder")
            .filter_map(|entry| Some(entry.expect("an entry").path().file_stem()?.to_str()?.to_owned()))
            .filter(|name| name != "mod" && !name.starts_with("testing"))
            .collect();
        let snake = |code: &str| {
            let mut name = String::new();
            for letter in code.chars() {
                if letter.is_uppercase() && !name.is_empty() {
                    name.push('_');
                }
                name.extend(letter.to_lowercase());
            }
            name
        };
        let table: BTreeSet<String> = ALL.iter().map(|check| snake(check.code)).collect();
        assert_eq!(table.len(), ALL.len(), "codes are unique");
        assert_eq!(files, table);
    }

    /// What is decided by who looks is shown there: check, case, file and test.
    const ELSEWHERE: &[(&str, &str, &str, &str)] =
        &[("encap_blocked", "trap", "src/agent/observe/tunnels.rs", "vxlan_is_filtered_and_free_again")];

    /// Each shows in its own file, by the names of its tests: where it fires (a name with none of these words), that it is
    /// healthy and clears, its trap, and that it says Unknown when it cannot look.
    #[test]
    fn every_check_has_its_five_cases() {
        const CASES: [&str; 4] = ["healthy", "clear", "trap", "unknown"];
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("a source file");
        let tests = |text: &str| -> Vec<String> {
            let named = text.split("#[test]\n").skip(1).filter_map(|part| part.trim_start().strip_prefix("fn "));
            named.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())).collect()
        };
        let mut lacking = Vec::new();
        for entry in std::fs::read_dir(root.join("src/checks/node")).expect("this folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8").to_owned();
            if path.is_dir() || name == "mod" || name.starts_with("testing") {
                continue;
            }
            let own = tests(&read(&path));
            let mut has: Vec<&str> =
                CASES.into_iter().filter(|case| own.iter().any(|test| test.contains(case))).collect();
            for (_, case, file, test) in ELSEWHERE.iter().filter(|(of, ..)| *of == name) {
                assert!(tests(&read(&root.join(file))).iter().any(|known| known == test), "no {test} in {file}");
                has.push(case);
            }
            let fires = own.iter().any(|test| CASES.iter().all(|case| !test.contains(case)));
            if has.len() < CASES.len() || !fires {
                lacking.push(format!("{name} has {has:?}, fires: {fires}"));
            }
        }
        assert!(lacking.is_empty(), "{}", lacking.join("\n"));
    }

    #[test]
    fn causes_come_before_consequences() {
        let areas: Vec<_> = ALL.iter().map(|check| check.area).collect();
        assert!(areas.is_sorted(), "{areas:?}");
    }

    #[test]
    fn texts_fit_into_a_sentence() {
        for check in ALL {
            assert!(!check.why.ends_with('.') && !check.next_step.ends_with('.'), "{}", check.code);
            assert!(check.why.len() + check.next_step.len() < 600, "{}", check.code);
        }
    }
}
