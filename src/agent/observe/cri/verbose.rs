//! What the verbose status tells: the runtime's own configuration, as far as it matters.

use std::collections::HashMap;
use std::time::Instant;

/// What only the verbose status tells.
#[derive(Debug, Clone)]
pub(super) struct Verbose {
    pub(super) at: Instant,
    pub(super) cni_dirs: Option<(String, Vec<String>)>,
    pub(super) cni_loopback: bool,
    pub(super) cni_load: Option<String>,
}

/// What containerd tells in its verbose status (facts.md F.2); other runtimes tell other things, which are ignored.
pub(super) fn read_info(info: &HashMap<String, String>) -> Verbose {
    let cni: Option<serde_json::Value> = info.get("cniconfig").and_then(|text| serde_json::from_str(text).ok());
    let cni_loopback = cni.as_ref().is_some_and(runs_loopback);
    let cni_dirs = cni.and_then(|cni| {
        let conf_dir = cni.get("PluginConfDir")?.as_str().filter(|path| !path.is_empty())?.to_owned();
        let bin_dirs = cni.get("PluginDirs")?.as_array()?.iter().filter_map(|path| path.as_str().map(str::to_owned));
        Some((conf_dir, bin_dirs.collect()))
    });
    let load = info.get("lastCNILoadStatus").or_else(|| info.get("lastCNILoadStatus.default"));
    let cni_load = load.map(|text| text.trim_matches('"').to_owned());
    Verbose { at: Instant::now(), cni_dirs, cni_loopback, cni_load }
}

/// Whether one of the networks that it joins every pod to is made by the plugin `loopback` (go-cni `WithLoNetwork`).
pub(super) fn runs_loopback(cni: &serde_json::Value) -> bool {
    let list =
        |value: &serde_json::Value, key: &str| value.get(key).and_then(|it| it.as_array().cloned()).unwrap_or_default();
    let plugins = list(cni, "Networks").into_iter().flat_map(|network| list(&network["Config"], "Plugins"));
    plugins.into_iter().any(|plugin| plugin["Network"]["type"] == "loopback")
}
