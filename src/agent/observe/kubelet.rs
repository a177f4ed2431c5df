//! What the kubelet's files and arguments say: thresholds, ports, the runtime's socket and the control plane's address.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::host_root::HostRoot;
use crate::facts::{CapacitySettings, EvictionThresholds, Kubelet, KubeletCertificate, LookError, Reason, Seen};

mod certificate;
mod drop_in;
mod eviction;
pub(super) mod kubeconfig;
mod manifests;
mod quantity;

/// The kubelet's configuration is some kilobytes; in bytes.
const LIMIT: u64 = 1 << 20;
/// `healthzPort` when nobody sets it (`pkg/kubelet/apis/config/v1beta1/defaults.go`).
const HEALTHZ_PORT: u16 = 10248;
/// Where kubeadm, IBM and most others have static pods.
const STATIC_PODS: &str = "/etc/kubernetes/manifests";
/// `--cert-dir` when nobody sets it.
const CERTIFICATES: &str = "/var/lib/kubelet/pki";
/// In it the certificate that it shows, when the cluster signs that (`serverTLSBootstrap`): a link to the newest one.
const SERVING: &str = "kubelet-server-current.pem";
/// Where kubeadm and most others put the configuration.
const CONFIGURATIONS: [&str; 1] = ["/var/lib/kubelet/config.yaml"];
/// Where kubeadm, cloud images, OpenShift, k3s and RKE2 put the kubelet's kubeconfig.
const KUBECONFIGS: [&str; 5] = [
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/kubelet/kubeconfig",
    "/etc/kubernetes/kubelet-kubeconfig",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
];

/// The fields of a `KubeletConfiguration` that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    #[serde(deserialize_with = "texts")]
    eviction_hard: Option<Texts>,
    #[serde(deserialize_with = "texts")]
    eviction_soft: Option<Texts>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u8>,
    cgroup_root: Option<String>,
    healthz_port: Option<u16>,
    container_runtime_endpoint: Option<String>,
    merge_default_eviction_settings: Option<bool>,
    rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: Option<bool>,
    tls_cert_file: Option<String>,
    static_pod_path: Option<String>,
    cluster_domain: Option<String>,
}

/// Texts by key.
type Texts = BTreeMap<String, String>;

/// Quantities as texts; YAML takes `1000` for a number.
fn texts<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Texts>, D::Error> {
    let map = Option::<BTreeMap<String, serde_json::Value>>::deserialize(input)?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(map.map(|map| map.into_iter().map(|(key, value)| (key, text(value))).collect()))
}

/// Looks at the files that the kubelet's arguments name, or else at the well-known ones. [`Reason::Missing`] when the
/// kubelet does not run and none of its files exists.
pub(crate) fn look(host: &HostRoot, arguments: Option<&[String]>) -> Result<Kubelet, LookError> {
    let option = |name| arguments.and_then(|arguments| argument(arguments, name));
    let first_of = |paths: &[&str]| paths.iter().find(|path| host.path(path).exists()).map(ToString::to_string);
    let config_path = option("config").or_else(|| first_of(&CONFIGURATIONS));
    let kubeconfig_path = option("kubeconfig").or_else(|| first_of(&KUBECONFIGS));
    if arguments.is_none() && config_path.is_none() && kubeconfig_path.is_none() {
        return Err(LookError::new("kubelet", Reason::Missing, "it does not run, and none of its files exists"));
    }
    let mut errors = Vec::new();
    let configuration = config_path.as_deref().map_or_else(Configuration::default, |path| {
        read(host, path).unwrap_or_else(|error| {
            errors.push(error);
            Configuration::default()
        })
    });
    let configuration = match option("config-dir") {
        Some(dir) => drop_in::merge(host, &dir, configuration, &mut errors),
        None => configuration,
    };
    let flags = [option("eviction-hard"), option("eviction-soft")];
    let [hard, soft] = eviction::thresholds(&configuration, flags).unwrap_or_else(|error| {
        let place = config_path.as_deref().unwrap_or("the kubelet's arguments");
        errors.push(format!("{place}: {error}; the default thresholds are assumed"));
        [EvictionThresholds::default(), EvictionThresholds::NONE]
    });
    let gc = option("image-gc-high-threshold").and_then(|percent| percent.parse().ok());
    let gc = gc.or(configuration.image_gc_high_threshold_percent).unwrap_or(eviction::IMAGE_GC_HIGH);
    let cgroup_root = option("cgroup-root").or(configuration.cgroup_root).filter(|root| !root.is_empty());
    let capacity = CapacitySettings {
        soft,
        image_gc_high_percent: (gc < 100).then_some(gc),
        cgroup_root: cgroup_root.unwrap_or_else(|| "/".to_owned()),
    };
    // Arguments win over the file.
    let port = option("healthz-port").and_then(|port| port.parse().ok()).or(configuration.healthz_port);
    let endpoint = option("container-runtime-endpoint").or(configuration.container_runtime_endpoint);
    let rotates = is_set(option("rotate-certificates"), configuration.rotate_certificates);
    let certificate = |path| client_certificate(host, path, rotates);
    let signed = is_set(option("rotate-server-certificates"), configuration.server_tls_bootstrap);
    let own = option("tls-cert-file").or(configuration.tls_cert_file).filter(|path| !path.is_empty());
    let made = || format!("{}/{SERVING}", option("cert-dir").as_deref().unwrap_or(CERTIFICATES).trim_end_matches('/'));
    let serving = own.map(|path| (path, false)).or_else(|| signed.then(|| (made(), true)));
    let static_pods = option("pod-manifest-path").or(configuration.static_pod_path).filter(|path| !path.is_empty());
    // One that was told of no directory reads none, whatever there is.
    let told = static_pods.as_ref().map(|path| manifests::look(host, path.trim_end_matches('/')));
    Ok(Kubelet {
        manifests: told.map_or(Seen::Absent, Seen::from),
        serving_certificate: serving.map_or(Seen::Absent, |(path, rotates)| {
            // Until the cluster has signed the first one there is none.
            host.read_text(&path, LIMIT).and_then(|pem| judged(path, &pem, rotates)).into()
        }),
        static_pods: static_pods.map_or_else(|| STATIC_PODS.to_owned(), |path| path.trim_end_matches('/').to_owned()),
        client_certificate: kubeconfig_path.as_deref().map_or(Seen::Absent, |path| certificate(path).into()),
        server: kubeconfig_path.as_deref().and_then(|path| server(host, path)),
        node_name: arguments.and_then(|arguments| node_name(host, arguments)),
        config_path,
        kubeconfig_path,
        healthz_port: port.unwrap_or(HEALTHZ_PORT),
        runtime_endpoint: endpoint.filter(|it| !it.is_empty()).map(|it| it.trim_start_matches("unix://").to_owned()),
        eviction: hard,
        capacity,
        cluster_domain: option("cluster-domain").or(configuration.cluster_domain).filter(|it| is_domain(it)),
        config_error: (!errors.is_empty()).then(|| errors.join("; ")),
    })
}

/// Whether an argument or, without it, the configuration switches something on.
fn is_set(argument: Option<String>, configured: Option<bool>) -> bool {
    argument.map(|value| value != "false").or(configured) == Some(true)
}

/// Whether a name of DNS can end with it: 253 bytes at most, in labels of at most 63 (RFC 1035, 2.3.4), and room for the rest.
fn is_domain(name: &str) -> bool {
    let labels = || name.trim_end_matches('.').split('.');
    name.len() <= 200 && labels().all(|label| (1..=63).contains(&label.len()))
}

/// The value of `--name value` or `--name=value`; the last one counts, as for the kubelet.
pub(crate) fn argument(arguments: &[String], name: &str) -> Option<String> {
    let mut found = None;
    for (at, argument) in arguments.iter().enumerate() {
        let Some(rest) = argument.strip_prefix("--").and_then(|option| option.strip_prefix(name)) else { continue };
        match rest.strip_prefix('=') {
            Some(value) => found = Some(value.trim_matches(['"', '\'']).to_owned()),
            None if rest.is_empty() => found = arguments.get(at + 1).cloned(),
            None => {}
        }
    }
    found.filter(|value| !value.is_empty())
}

/// `getNodeName` of the kubelet: with a cloud provider in the kubelet itself that provider decides, which nobody here can
/// know.
fn node_name(host: &HostRoot, arguments: &[String]) -> Option<String> {
    let own = argument(arguments, "cloud-provider").is_none_or(|provider| provider == "external");
    let host_name = || host.read_text("/proc/sys/kernel/hostname", 256).ok().filter(|_| own);
    let name = argument(arguments, "hostname-override").or_else(host_name)?;
    Some(name.trim().to_lowercase()).filter(|name| !name.is_empty())
}

fn read(host: &HostRoot, path: &str) -> Result<Configuration, String> {
    if !path.starts_with('/') {
        return Err(format!("{path}: is relative to the kubelet's working directory; the defaults are assumed"));
    }
    let text = host.read_text(path, LIMIT).map_err(|error| format!("{error}; the defaults are assumed"))?;
    crate::yaml::parse(&text).map_err(|error| {
        format!("{path}: {error}; correct this, or the kubelet does not start again; the defaults are assumed")
    })
}

fn server(host: &HostRoot, path: &str) -> Option<String> {
    match kubeconfig::cluster(host, path) {
        Ok(cluster) => Some(cluster.server),
        Err(error) => {
            tracing::debug!(%error, "the kubeconfig names no server");
            None
        }
    }
}

fn client_certificate(host: &HostRoot, kubeconfig: &str, rotates: bool) -> Result<KubeletCertificate, LookError> {
    let (path, pem) = kubeconfig::client_certificate(host, kubeconfig)?;
    judged(path, &pem, rotates)
}

fn judged(path: String, pem: &str, rotates: bool) -> Result<KubeletCertificate, LookError> {
    match certificate::validity(pem) {
        Some((not_before, not_after)) => Ok(KubeletCertificate { path, not_before, not_after, rotates }),
        None => Err(LookError::new(path, Reason::Malformed, "holds no certificate that can be decoded")),
    }
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match which % 4 {
        0 => {
            if let Ok(configuration) = crate::yaml::parse::<Configuration>(&text) {
                let _ = eviction::thresholds(&configuration, [None, None]);
                let again = crate::yaml::parse(&text).expect("it was understood");
                let _ = eviction::thresholds(&configuration.overlaid(again), [None, None]);
            }
        }
        1 => {
            kubeconfig::fuzz(&text);
            manifests::fuzz(&text);
            let _ = certificate::validity(&text);
        }
        2 => quantity::fuzz(&text),
        _ => {
            let arguments: Vec<String> = text.split('\0').map(str::to_owned).collect();
            let hard = argument(&arguments, "eviction-hard");
            assert_ne!(hard.as_deref(), Some(""));
            let _ = eviction::thresholds(&Configuration::default(), [hard, argument(&arguments, "eviction-soft")]);
        }
    }
}

#[cfg(test)]
mod tests;
