//! A real kubelet and a real containerd on a worker of namespaces: the kubelet is killed and started again and again, and its
//! certificates are about to expire, have expired and are renewed, and its static pods run or not, before an API server that
//! knows nobody.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use crate::machine::{Checked, program};
use crate::servers::{Api, GOOD, api_server_at, authority, server_of};
use crate::support::host::{Host, tail};
use crate::support::node::{CONTAINERD_CONFIG, SETUP, kubelet_config};
use crate::support::parts;
use crate::support::shell;
use crate::support::wait::within;

const SOON: Duration = Duration::from_secs(60);
const SERVER: &str = "10.77.0.1:6443";
const AUTHORITY: &str = "/etc/kubernetes/pki/ca.crt";
const CONFIG: &str = "/var/lib/kubelet/config.yaml";
const CLIENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
const SERVING: &str = "/var/lib/kubelet/pki/kubelet.crt";
const MANIFESTS: &str = "/etc/kubernetes/manifests";
const HOUR: i64 = 3600;

/// A worker. Its API server answers 401 to everybody, as to one whose certificate has expired.
struct Worker {
    host: Host,
    directory: tempfile::TempDir,
    cgroup: String,
    authority: CertifiedIssuer<'static, KeyPair>,
    _api: Api,
    _tokio: tokio::runtime::Runtime,
}

impl Worker {
    fn start(name: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (root, cgroup) = (directory.path().join("root"), format!("nodevitals-netns-{}-{name}", std::process::id()));
        let environment: [(&str, &OsStr); 3] =
            [("NODE_DIR", root.as_os_str()), ("NODE_IP", "10.77.0.11".as_ref()), ("NODE_CGROUP", cgroup.as_ref())];
        let host = Host::start(name, SETUP, &environment, directory.path())?;
        let network = "ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up; ip address add 10.77.0.11/24 dev eth0;
                       ip address add 10.77.0.1/32 dev lo; ip route add default via 10.77.0.254";
        host.read(&["sh", "-ec", network])?;
        let authority = authority();
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let acceptor = server_of(&authority, "10.77.0.1", GOOD);
        let api = host.run_in_network(|| tokio.block_on(api_server_at(SERVER, acceptor, "401 Unauthorized")))?;
        let worker = Worker { host, directory, cgroup, authority, _api: api, _tokio: tokio };
        std::fs::write(worker.path(AUTHORITY), worker.authority.pem())?;
        std::fs::write(worker.path("/etc/containerd/config.toml"), CONTAINERD_CONFIG)?;
        worker.host.spawn("containerd", &["containerd"])?;
        within(SOON, || worker.host.read(&["ctr", "version"]))?;
        let user = json!({"client-certificate": CLIENT, "client-key": CLIENT});
        let cluster = json!({"server": format!("https://{SERVER}"), "certificate-authority": AUTHORITY});
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "clusters": [{"name": "x", "cluster": cluster}], "users": [{"name": "x", "user": user}],
        });
        std::fs::write(worker.path("/etc/kubernetes/kubelet.conf"), kubeconfig.to_string())?;
        worker.certify(CLIENT, -HOUR, 8000 * HOUR)?;
        worker.certify(SERVING, -HOUR, 8000 * HOUR)?;
        worker.configure(false)?;
        Ok(worker)
    }

    /// A file of the worker as the test sees it.
    fn path(&self, inside: &str) -> PathBuf {
        self.directory.path().join("root").join(inside.trim_start_matches('/'))
    }

    /// Signs a certificate that is good from so many seconds from now to so many; the key is beside it, or in the same file.
    fn certify(&self, file: &str, from: i64, until: i64) -> Result<()> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let at =
            |seconds: i64| u64::try_from(now + seconds).map(|it| date_time_ymd(1970, 1, 1) + Duration::from_secs(it));
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["10.77.0.11".to_owned()])?;
        (params.not_before, params.not_after) = (at(from)?, at(until)?);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let pem = params.signed_by(&key, &self.authority)?.pem();
        if file == CLIENT {
            std::fs::write(self.path(file), pem + &key.serialize_pem())?;
        } else {
            std::fs::write(self.path(file), pem)?;
            std::fs::write(self.path(file).with_extension("key"), key.serialize_pem())?;
        }
        Ok(())
    }

    /// Writes the kubelet's configuration.
    fn configure(&self, rotates: bool) -> Result<()> {
        let mut config = kubelet_config(&self.cgroup);
        config["rotateCertificates"] = rotates.into();
        Ok(std::fs::write(self.path(CONFIG), config.to_string())?)
    }

    /// Starts the kubelet, killing the one that runs, and waits until it answers.
    fn restart_kubelet(&self) -> Result<()> {
        if self.host.pid("kubelet").is_ok() {
            self.host.kill("kubelet")?;
        }
        let program = parts::program("kubelet")?;
        let program = program.to_str().context("a path in UTF-8")?;
        let files = [format!("--config={CONFIG}"), "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned()];
        self.host.spawn("kubelet", &[program, &files[0], &files[1], "--node-ip=10.77.0.11", "--v=2"])?;
        let healthy = || {
            self.host.pid("kubelet")?;
            self.host.read(&["curl", "-sf", "-m", "2", "http://127.0.0.1:10248/healthz"])
        };
        within(SOON, healthy).with_context(|| format!("the kubelet: {}", tail(&self.host.log("kubelet"))))?;
        Ok(())
    }

    /// `nodevitals check` on it, and its findings about the kubelet: severity, subject and detail.
    fn check(&self) -> Result<Vec<(String, Value)>> {
        self.check_for("Kubelet", &[])
    }

    /// The findings of `nodevitals check` with these options, of codes like this one.
    fn check_for(&self, code: &str, options: &[&str]) -> Result<Vec<(String, Value)>> {
        let program = program();
        let output = self.host.exec(&[&[path(&program)?, "check", "-o", "json"], options].concat())?;
        let json = serde_json::from_slice(&output.stdout).with_context(|| format!("not JSON: {output:?}"))?;
        let checked = Checked { json, status: output.status.code() };
        checked.codes_like(code).into_iter().map(|it| Ok((it.to_owned(), checked.finding(it)?.clone()))).collect()
    }

    /// Requires that this, or nothing, is all that is told of the kubelet.
    fn tells(&self, expected: Option<(&str, &str, &str)>) -> Result<()> {
        let told = self.check()?;
        let Some((severity, subject, words)) = expected else {
            ensure!(told.is_empty(), "{told:?}");
            return Ok(());
        };
        let [(code, finding)] = &told[..] else { anyhow::bail!("{expected:?}: {told:?}") };
        ensure!(code == "KubeletCertExpiring", "{finding}");
        ensure!(finding["severity"] == severity && finding["subject"] == subject, "{expected:?}: {finding}");
        ensure!(finding["detail"].to_string().contains(words), "{words}: {finding}");
        Ok(())
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.host.log("kubelet"))?)
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The cgroups of the kubelet are free when its processes are gone, which the host's first process takes along.
        for program in ["kubelet", "containerd"] {
            self.host.kill(program).ok();
        }
        let remove = format!("find /sys/fs/cgroup -depth -type d -path '*{}*' -exec rmdir {{}} +", self.cgroup);
        // A cgroup lets go of the last process some moments after it has ended.
        within(Duration::from_secs(10), || shell::read(Command::new("sh").args(["-c", &remove]))).ok();
    }
}

#[test]
fn a_real_kubelet_with_certificates_that_expire_and_are_renewed() -> Result<()> {
    let worker = Worker::start("certificates")?;
    worker.restart_kubelet()?;
    worker.tells(None)?;
    let day = 24 * HOUR;
    let (client, serving) = ("The kubelet's client certificate", "The kubelet's serving certificate");
    for (file, from, until, rotates, severity, words) in [
        (CLIENT, -340 * day, 25 * day, false, "warning", "and the kubelet is not set to renew it"),
        // It tries to renew it, and nobody signs.
        (CLIENT, -340 * day, 25 * day, true, "warning", "and should have been renewed before"),
        (CLIENT, -365 * day, -HOUR, true, "critical", "expired on"),
        (CLIENT, HOUR, 365 * day, false, "critical", "is not valid before"),
        (SERVING, -365 * day, -HOUR, false, "warning", "expired on"),
    ] {
        worker.certify(file, from, until)?;
        worker.configure(rotates)?;
        worker.restart_kubelet()?;
        worker.tells(Some((severity, file, words))).with_context(|| tail(&worker.host.log("kubelet")))?;
        let whose = if file == CLIENT { client } else { serving };
        ensure!(worker.check()?[0].1["detail"].to_string().contains(whose), "{whose}");
        worker.certify(file, -HOUR, 365 * day)?;
        worker.configure(rotates)?;
        worker.restart_kubelet()?;
        worker.tells(None).context("it was renewed")?;
    }
    // The kubelet itself has seen what this is about.
    let log = worker.log()?;
    for said in ["Unauthorized", "Failed while requesting a signed certificate from the control plane"] {
        ensure!(log.contains(said), "{said:?} is not in its log: {}", tail(&worker.host.log("kubelet")));
    }
    Ok(())
}

#[test]
fn a_real_kubelet_that_is_killed_and_started_again_and_again() -> Result<()> {
    let worker = Worker::start("restarts")?;
    worker.restart_kubelet()?;
    // Restarts are counted over half an hour, and it is over a minute after: here after a minute.
    let config =
        r#"{"limits": {"kubeletRestartMinutes": 1}, "clearSeconds": {"KubeletRestarting": 1}, "settlingSeconds": 0}"#;
    std::fs::write(worker.path("/etc/nodevitals.yaml"), config)?;
    let program = program();
    let standalone = [path(&program)?, "standalone", "--config", "/etc/nodevitals.yaml"];
    worker.host.spawn("nodevitals", &[&["env", "NO_COLOR=1"], &standalone[..]].concat())?;
    let told = || -> Result<Option<Value>> {
        let page = worker.host.read(&["curl", "-sf", "-m", "5", "http://127.0.0.1:10580/findings"])?;
        let findings = serde_json::from_str::<Value>(&page)?["verdict"]["findings"].take();
        let mut findings = findings.as_array().context("findings")?.iter();
        Ok(findings.find(|it| it["code"] == "KubeletRestarting").cloned())
    };
    let untold = || {
        let finding = told()?;
        ensure!(finding.is_none(), "{finding:?}");
        Ok(())
    };
    within(SOON, untold)?;
    // Long enough for a look at the processes: the first one is known, and one restart is an update.
    let seen = Duration::from_secs(5);
    std::thread::sleep(seen);
    worker.restart_kubelet()?;
    std::thread::sleep(seen);
    untold()?;
    worker.restart_kubelet()?;
    let finding = within(SOON, || told()?.context("not told yet"))?;
    let expected = "The kubelet was restarted 2 times within the last 1 minutes";
    ensure!(finding["detail"].to_string().contains(expected) && finding["severity"] == "warning", "{finding}");
    within(SOON * 2, untold)?;
    let log = std::fs::read_to_string(worker.host.log("nodevitals"))?;
    let raised = log.lines().filter(|line| line.contains("finding raised") && line.contains("KubeletRestarting"));
    ensure!(raised.count() == 1, "{log}");
    Ok(())
}

/// A static pod of one container, which runs this.
fn manifest(name: &str, command: &[&str]) -> Value {
    let container = json!({"name": "main", "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never", "command": command});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [container]},
    })
}

#[test]
fn a_real_kubelet_whose_static_pods_run_are_refused_or_end_again_and_again() -> Result<()> {
    let worker = Worker::start("static")?;
    for archive in ["pause.tar", "busybox.tar"] {
        let archive = parts::archive(archive)?;
        worker.host.read(&["ctr", "--namespace", "k8s.io", "images", "import", path(&archive)?])?;
    }
    let mut config = kubelet_config(&worker.cgroup);
    config["staticPodPath"] = MANIFESTS.into();
    std::fs::write(worker.path(CONFIG), config.to_string())?;
    std::fs::create_dir_all(worker.path(MANIFESTS))?;
    std::fs::write(worker.path("/etc/nodevitals.yaml"), r#"{"limits": {"staticPodSettlingSeconds": 0}}"#)?;
    worker.restart_kubelet()?;
    let log = || tail(&worker.host.log("kubelet"));
    let [proxy, loops] = ["proxy", "loop"].map(|name| format!("{MANIFESTS}/{name}.yaml"));
    let write = |file: &str, manifest: &Value| std::fs::write(worker.path(file), manifest.to_string());
    // Requires that these words about this file, or nothing, are all that is told of it.
    let tells = |wanted: Option<(&str, &str)>| {
        let told = worker.check_for("StaticPod", &["--config", "/etc/nodevitals.yaml"])?;
        let Some((file, words)) = wanted else {
            ensure!(told.is_empty(), "{told:?}");
            return Ok(());
        };
        let [(_, finding)] = &told[..] else { anyhow::bail!("{words}: {told:?}") };
        ensure!(finding["severity"] == "warning" && finding["subject"] == file, "{finding}");
        ensure!(finding["detail"].to_string().contains(words), "{words}: {finding}");
        Ok(())
    };
    let running = || {
        let tasks = worker.host.read(&["ctr", "--namespace", "k8s.io", "tasks", "ls"])?;
        ensure!(tasks.matches("RUNNING").count() == 2, "a sandbox and its container: {tasks}");
        Ok(())
    };
    tells(None).context("an empty directory")?;
    // Neither is a manifest for the kubelet.
    let sleeps = manifest("proxy", &["sleep", "36000"]);
    write(&format!("{MANIFESTS}/.proxy.yaml.swp"), &sleeps)?;
    std::fs::write(worker.path(&format!("{MANIFESTS}/README")), "ask before you change this\n")?;
    let mut refused = sleeps.clone();
    refused["spec"]["containers"][0]["name"] = "Not A Name".into();
    write(&proxy, &refused)?;
    let none = "The static pod kube-system/proxy of /etc/kubernetes/manifests/proxy.yaml does not run: the runtime has had no sandbox";
    within(SOON, || tells(Some((&proxy, none)))).with_context(log)?;
    let has_read = || {
        let text = std::fs::read_to_string(worker.host.log("kubelet"))?;
        ensure!(text.contains("Could not process manifest file"), "the kubelet has not read it");
        Ok(())
    };
    within(SOON, has_read).with_context(log)?;

    write(&proxy, &sleeps)?;
    within(SOON, running).with_context(log)?;
    within(SOON, || tells(None)).context("it runs")?;

    write(&loops, &manifest("loop", &["sh", "-c", "exit 3"]))?;
    let again = "its container main ends again and again: it was started";
    within(SOON * 3, || tells(Some((&loops, again)))).with_context(log)?;
    // This kubelet does not end what is left of a pod, because it never heard from its API server which pods there are.
    std::fs::remove_file(worker.path(&loops))?;
    within(SOON, || tells(None)).context("nobody wants it any more")
}
