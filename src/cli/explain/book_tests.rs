use super::*;
use crate::checks::{Outcome, Severity};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn every_line_is_understood() {
    for text in TEXTS {
        let mut record = None;
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("== ") {
                record = Some(Record { name: head, ..Record::default() });
                continue;
            }
            let record = record.as_mut().expect("a record first");
            assert!(record.field(line).is_some(), "{}: {line}", record.name);
        }
    }
}

#[test]
fn every_explanation_is_whole() {
    let book = Book::open();
    for entry in &book.entries {
        let record = &entry.record;
        let name = record.name;
        assert!(!record.owner.is_empty(), "{name}: whose");
        assert!(["critical", "warning", "info"].contains(&record.severity), "{name}: severity {}", record.severity);
        assert!(entry.check.is_some() || !record.means.is_empty(), "{name}: meaning");
        assert!(!record.cause.is_empty() || entry.check.is_some(), "{name}: cause");
        assert!(!record.not.is_empty() || entry.check.is_some() || record.severity == "info", "{name}: mistaken for");
        let (_, steps) = book.plan(record);
        assert!(entry.check.is_some() || !steps.is_empty() || !record.answers.is_empty(), "{name}: steps");
        assert!(record.ask.is_empty() == record.answers.is_empty(), "{name}: a question and its answers");
        assert!(record.answers.len() != 1, "{name}: one answer decides nothing");
    }
}

#[test]
fn names_are_unique_and_those_that_are_mentioned_exist() {
    let book = Book::open();
    let mut names = BTreeSet::new();
    for entry in &book.entries {
        assert!(names.insert(entry.record.name), "{} twice", entry.record.name);
    }
    let mut used = BTreeSet::new();
    for record in book.entries.iter().map(|entry| &entry.record).chain(&book.parts) {
        let lists = [record.see, record.after].into_iter().flat_map(|list| list.split(", "));
        for name in lists.filter(|name| !name.is_empty()).chain(record.answers.iter().map(|(_, name)| *name)) {
            assert!(names.contains(name), "{}: no {name}", record.name);
        }
        for line in &record.lines {
            if let Line::Use(part) = line {
                assert!(book.parts.iter().any(|known| known.name == *part), "{}: no part {part}", record.name);
                used.insert(*part);
            }
        }
    }
    for area in Area::ALL {
        assert!(book.parts.iter().any(|part| part.name == part_of(area)), "{area:?}");
        used.insert(part_of(area));
    }
    for part in &book.parts {
        assert!(used.contains(part.name), "nobody uses {}", part.name);
    }
}

#[test]
fn products_are_known() {
    let book = Book::open();
    let known = |list: &str| {
        list.is_empty() || list.split(',').all(|name| ["ibm", "classic", "vpc", "roks", "kubernetes"].contains(&name))
    };
    for record in book.entries.iter().map(|entry| &entry.record).chain(&book.parts) {
        assert!(known(record.only), "{}", record.name);
        let (gather, steps) = book.plan(record);
        for item in gather.into_iter().chain(steps) {
            assert!(known(item.products), "{}: {}", record.name, item.text);
            assert!(item.commands.iter().all(|(only, _)| known(only)), "{}: {:?}", record.name, item.commands);
        }
    }
}

static NEW: Check = Check {
    code: "NobodyWroteOfThis",
    area: Area::Runtime,
    severity: Severity::Warning,
    why: "it is new",
    next_step: "look at it",
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run: |_| Outcome::Healthy,
};

#[test]
fn a_check_of_which_nothing_is_written_is_explained_by_its_own_fields_and_its_area() {
    static CHECKS: [&Check; 1] = [&NEW];
    let book = Book::bind(&CHECKS, TEXTS.iter().flat_map(|text| records(text)).collect());
    let entry = book.entry("NobodyWroteOfThis").expect("explained");
    assert_eq!(entry.check.map(|check| (check.why, check.next_step)), Some(("it is new", "look at it")));
    assert_eq!(entry.record.severity, "warning");
    assert!(!entry.record.owner.is_empty());
    let (gather, steps) = book.plan(&entry.record);
    assert!(!gather.is_empty() && !steps.is_empty());
}

/// The finding codes of the catalogue: they are never renamed, and each has an explanation, whoever raises it.
const CODES: &str = "AccountNotPaid AgentScrapeFailing AgentStale ApiKeyOwnerInvalid ApiWriteBlocked BgpAllSessionsDown \
    BgpDaemonDown BgpMeshIncomplete BgpPasswordMismatch BgpPasswordSecretMissing BgpPortBlocked BgpSessionDown \
    BirdKernelSyncBroken BlockBlackholeMissing CalicoChainsMissing CalicoChainsUnhooked CalicoConfigDrift \
    CalicoDataForDeletedNodes CalicoFailureRecurring CalicoHookOrderWrong CalicoInitFailed CalicoKubeControllersCount \
    CalicoKubeControllersCrashLooping CalicoKubeControllersDown CalicoKubeControllersMissing \
    CalicoKubeControllersOnBadNode CalicoKubeControllersOomKilled CalicoMigrationInProgress CalicoMigrationStalled \
    CalicoNodeAbsent CalicoNodeFailingOnNode CalicoNodeFailingSubset CalicoNodeFailingWidespread CalicoRollingUpdate \
    CalicoVersionMixed ChangeBefore ClockSkewed ClusterDnsUnreachable ClusterIpPoolExhausted CniBinaryMissing \
    CniConfigConflict CniConfigInvalid CniConfigMissing CniKubeconfigInvalid CniNodenameMismatch CniNotInitialized \
    ConntrackFull ConntrackNearFull ContainerdDown ContainerdSlow ContainerdStoreCorrupt ContainerdUnresponsive \
    ControlTunnelDown DefaultCredentialsInUse DefaultRouteMissing DiskFull DiskPressureImminent DuplicateNodeObject \
    EncapBlocked EndpointGatewayPending EphemeralPortsNearFull FdExhaustionImminent FilesystemReadOnly FirewallSuspected \
    ForeignDropRule ForwardPolicyDrop GatewayClusterUnsupported GatewayUnreachable HostEndpointMissing HostEndpointStale \
    HostPolicyBlocksControlPlane IamTokenExchangeFailed ImageFsStatsMissing InfraAccountUnreachable \
    InfraCredentialInvalid InfraPermissionMissing InodesExhausted InodesExhaustionImminent IoPressureHigh \
    IpForwardDisabled IpLeakSuspected IpSetMissing IptablesBackendSplit IptablesLockContention KubeProxyChainsMissing \
    KubeProxyChainsUnhooked KubeProxyDown KubeProxyRulesStale KubeletCertExpiring KubeletDown KubeletHeartbeatLost \
    KubeletRestarting KubeletUnhealthy LastWorkerAtRisk LinkErrors LinkedAccountCredentialConflict LoadBalancerReview \
    LocationInvalid MachineIdentityChanged ManualCredentialsInUse MasterClusterIpUnreachable MasterPathPartial \
    MasterUnreachableClusterwide MasterUnreachable MasterUpdateInProgress MemoryPressureImminent MtuMismatch \
    NetworkConditionStale NetworkTaintStuck NetworkUnavailableBrief NetworkUnavailableProlonged NodeFilesDamaged \
    NodeIpBlocksExhausted NodeIpReused NodeOvercommitted NodeReadyFlapping NodeStillCordoned OneTimePasscodeEnabled \
    OrderingProhibited OrphanedCluster OutOfMemory PidPressureImminent PodRouteMissing PodRouteShadowed PodRouteStale \
    PodSandboxFailing PolicyRoutingHijack PoolNotRefilled RegistryRoleMissing RegistryUnreachable RemedyUnsafe \
    RemoteBlockRouteMissing RemoteBlockRouteWrongNextHop RpFilterStrict RuntimeNotReady RuntimeObjectLeak \
    SecurityGroupPending SharedCause ShimLeak SoftRebootUnresponsive SshUnavailable StaticRouteAdded TablesFlushed \
    TargetResourceGroupMismatch TunnelDeviceMissing TyphaUnhealthy UncleanReboot VersionSkewUnsupported VlanUnavailable \
    VpeGatewaySuspected VpnInterfaceAdded WebhookBlocksSystemPods WebhookDeadlock WebhookRisk WorkerCutFromMasterOnly \
    WorkerDeleted WorkerDeleting WorkerDeployNetworkFailure WorkerFailedTransition WorkerFirewallBlocked WorkerHealthy \
    WorkerPatchOutdated WorkerRemovedConfirmed WorkerSettling WorkerStuckInTransition WorkerUnreachableFromPeers \
    ZoneBelowTwoWorkers ZoneCapacityInsufficient ZoneConnectionLimitSuspected";

#[test]
fn every_code_has_an_explanation() {
    let book = Book::open();
    let missing: Vec<&str> = CODES.split_whitespace().filter(|code| book.entry(code).is_none()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(ALL.iter().all(|check| book.entry(check.code).is_some_and(|entry| entry.check.is_some())));
}

/// What the provider's documents and runbooks tell people to run, in short.
const COMMANDS: &str = "ibmcloud ks worker ls --cluster
ibmcloud ks worker ls --cluster CLUSTER --worker-pool
ibmcloud ks worker get --cluster CLUSTER --worker
ibmcloud ks worker rm --cluster CLUSTER --worker
ibmcloud ks worker reload --cluster CLUSTER --worker
ibmcloud ks worker replace --cluster CLUSTER --worker
WORKER_ID --update
ibmcloud ks worker reboot --cluster CLUSTER --worker
WORKER_ID --hard
ibmcloud ks cluster ls
ibmcloud ks cluster config --cluster CLUSTER --admin --network
ibmcloud ks cluster master refresh -c
ibmcloud ks cluster-refresh --cluster
ibmcloud ks zone network-set --zone ZONE --cluster CLUSTER --worker-pool POOL --private-vlan PRIVATE_VLAN_ID --public-vlan
ibmcloud ks vlan ls --zone
ibmcloud ks worker-pool ls --cluster
ibmcloud ks worker-pool resize --cluster CLUSTER --worker-pool POOL --size-per-zone
ibmcloud ks worker-pool rebalance
ibmcloud ks worker-pool rm
ibmcloud ks worker-pool create
ibmcloud ks api-key info --cluster
ibmcloud ks api-key reset --region
ibmcloud ks credential get --region
ibmcloud ks credential set classic --infrastructure-username USERNAME --infrastructure-api-key KEY --region
ibmcloud ks credential unset --region
ibmcloud ks infra-permissions get --region
ibmcloud target
ibmcloud target -g
ibmcloud account list
ibmcloud account show
kubectl get nodes
kubectl describe node
kubectl delete node
kubectl cordon
kubectl drain
kubectl uncordon
kubectl -n kube-system get pods
kubectl -n kube-system get pods -o wide
kubectl get pods POD -n NAMESPACE -o json
kubectl delete pod
kubectl delete deployment
kubectl delete pod -n CALICO_NS calico-node-XXXXX
kubectl delete pod -n CALICO_NS calico-kube-controllers-YYYYYYYYYY-XXXXX
kubectl describe pod -n CALICO_NS calico-node-XXXXX
kubectl describe pod -n CALICO_NS calico-kube-controllers-YYYYYYYYYY-XXXXX
kubectl logs -n CALICO_NS calico-node-XXXXX -c calico-node > calico-node-XXXXX.log
kubectl logs -n CALICO_NS calico-node-XXXXX -c install-cni > calico-node-XXXXX-cni.log
kubectl logs -n kube-system calico-node-XXXXX -c calico-extension > calico-node-XXXXX-ext.log
kubectl logs -n kube-system ibm-keepalived-watcher-XXXXX -c calico-extension > ibm-keepalived-watcher-XXXXX-ext.log
kubectl logs -n CALICO_NS calico-kube-controllers-YYYYYYYYYY-XXXXX > calico-kube-controllers-YYYYYYYYYY-XXXXX.log
kubectl get secret calico-bgp-password -n kube-system -o yaml | sed 's/namespace: kube-system/namespace: calico-system/g'
cat <<EOF | kubectl apply -f -
name: bgp-secret-access
calicoctl get nodes -o wide
calicoctl get nodes --config=
calicoctl delete node NODE_ID
calicoctl ipam release --from-report
tcpdump";

#[test]
fn every_command_of_the_runbooks_is_in_some_explanation() {
    let book = Book::open();
    let mut all = String::new();
    for entry in &book.entries {
        let (gather, steps) = book.plan(&entry.record);
        let commands = gather.into_iter().chain(steps).flat_map(|item| &item.commands);
        commands.for_each(|(_, command)| all.extend([command.as_str(), "\n"]));
    }
    for command in COMMANDS.lines() {
        assert!(all.contains(command), "{command}");
    }
    // What the documents print wrong is not printed here: this one is garbled there.
    assert!(!all.contains("-- worker-pool"));
    // A reboot without a drain damages files.
    for entry in &book.entries {
        let (_, steps) = book.plan(&entry.record);
        let commands: Vec<&str> = steps.iter().flat_map(|item| &item.commands).map(|(_, line)| line.as_str()).collect();
        let Some(reboot) = commands.iter().position(|line| line.contains("worker reboot")) else { continue };
        // A machine that nobody reaches cannot be drained.
        let drained = commands[..reboot].iter().any(|line| line.contains("kubectl drain"));
        assert!(drained || entry.record.name == "WorkerUnreachableFromPeers", "{}", entry.record.name);
    }
}

#[test]
fn who_is_cordoned_is_let_in_again() {
    let book = Book::open();
    for entry in &book.entries {
        let (_, steps) = book.plan(&entry.record);
        let has = |what: &str| steps.iter().flat_map(|item| &item.commands).any(|(_, line)| line.contains(what));
        let gone = has("worker replace") || has("worker update") || has("delete node");
        assert!(!has("kubectl cordon") || has("kubectl uncordon") || gone, "{}", entry.record.name);
    }
}
