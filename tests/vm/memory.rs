//! Memory by cgroup v2: what is counted, and whose fault it is that the kernel kills.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::machine::{Machine, SOON};
use crate::support::wait::within;

/// Pods as the kubelet makes them with the driver systemd: `a`, `job` and `big` have a limit, `b` has none.
pub(super) const PODS: &str = r#"
cd /sys/fs/cgroup
slice() { mkdir -p "$1" && echo "+memory +pids" > "$1/cgroup.subtree_control"; }
echo "+memory +pids" > cgroup.subtree_control
slice kubepods.slice
slice kubepods.slice/kubepods-burstable.slice
for pod in a b job big; do
  slice "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${pod}_1.slice"
  mkdir "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${pod}_1.slice/cri-containerd-${pod}c.scope"
done
for pod in a job; do
  echo 32M > "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${pod}_1.slice/memory.max"
done
echo 100M > kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podbig_1.slice/memory.max
# A hog asks for more than there is, and gets it until it writes to it.
echo 1 > /proc/sys/vm/overcommit_memory
"#;

/// Takes so much memory in a pod, and must be killed for it.
fn hog(machine: &mut Machine, pod: &str, mebibytes: u32) -> Result<()> {
    let cgroup = cgroup(pod);
    let script = format!(
        "(echo 0 > {cgroup}/cri-containerd-{pod}c.scope/cgroup.procs && exec dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1); \
         test $? = 137"
    );
    machine.run(&script).map(drop).context("the kernel should have killed it")
}

/// The directory of a pod's cgroup.
pub(super) fn cgroup(pod: &str) -> String {
    format!("/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod}_1.slice")
}

/// Subject, severity and detail of each kill that is told.
fn kills(verdict: &Value) -> Vec<[String; 3]> {
    let findings = verdict["findings"].as_array().into_iter().flatten();
    let text =
        |finding: &Value| ["subject", "severity", "detail"].map(|key| finding[key].as_str().unwrap_or("").to_owned());
    findings.filter(|finding| finding["code"] == "OutOfMemory").map(text).collect()
}

/// What is told of more memory promised than there is.
fn overcommitted(verdict: &Value) -> Option<&Value> {
    verdict["findings"].as_array().into_iter().flatten().find(|finding| finding["code"] == "NodeOvercommitted")
}

/// Waits until a kill is told of this subject.
fn told(machine: &mut Machine, subject: &str) -> Result<[String; 3]> {
    machine.eventually(subject, |verdict| {
        let kills = kills(verdict);
        kills.iter().find(|[it, ..]| it == subject).cloned().with_context(|| format!("{kills:?}"))
    })
}

#[test]
fn a_kill_is_told_by_whose_memory_had_run_out() -> Result<()> {
    let mut machine = Machine::boot()?;
    machine.run(PODS)?;
    machine.run("echo '{\"holdDownSeconds\": {\"NodeOvercommitted\": 1}, \"clearSeconds\": {\"NodeOvercommitted\": 1}}' > /config")?;
    machine.run("NO_COLOR=1 nodevitals standalone --config /config >/dev/null 2>/log &")?;
    machine.eventually("the first look", |verdict| {
        ensure!(verdict["state"] == "Critical" && kills(verdict).is_empty(), "{verdict}");
        Ok(())
    })?;

    hog(&mut machine, "a", 100)?;
    let [_, severity, detail] = told(&mut machine, "pod a-1")?;
    ensure!(severity == "warning" && detail.starts_with("pod a-1 reached its own memory limit"), "{detail}");
    ensure!(detail.ends_with("; its log names dd"), "{detail}");

    // The kubelet removes a pod's cgroup as soon as the pod has ended.
    hog(&mut machine, "job", 100)?;
    machine.run(&format!("rmdir {0}/cri-containerd-jobc.scope {0}", cgroup("job")))?;
    let [_, severity, detail] = told(&mut machine, "gone")?;
    ensure!(
        severity == "warning" && detail.starts_with("A pod that has gone since reached its own memory limit"),
        "{detail}"
    );

    ensure!(overcommitted(&machine.page()?["verdict"]).is_none(), "{}", machine.page()?);

    machine.run("echo 64M > /sys/fs/cgroup/kubepods.slice/memory.max")?;
    hog(&mut machine, "b", 100)?;
    let [_, severity, detail] = told(&mut machine, "pods")?;
    ensure!(severity == "critical" && detail.contains(", in pod b-1"), "{detail}");
    // The limits are more than the pods together may have; that a pod reached its own is no sign that it matters.
    let detail = machine.eventually("it is told that too much is promised", |verdict| {
        let finding = overcommitted(verdict).with_context(|| format!("{:?}", kills(verdict)))?;
        ensure!(finding["subject"] == "memory" && finding["severity"] == "warning", "{finding}");
        Ok(finding["detail"].to_string())
    })?;
    ensure!(detail.contains("Memory ran out: ") && detail.contains(", of 64.0 MiB that pods may have"), "{detail}");
    machine.run("echo max > /sys/fs/cgroup/kubepods.slice/memory.max")?;
    machine.eventually("what is promised is there", |verdict| {
        ensure!(overcommitted(verdict).is_none(), "{:?}", overcommitted(verdict));
        Ok(())
    })?;

    hog(&mut machine, "b", 800)?;
    let [_, severity, detail] = told(&mut machine, "node")?;
    ensure!(severity == "critical" && detail.starts_with("The node ran out of memory"), "{detail}");
    ensure!(detail.contains(", in pod b-1; its log names dd"), "{detail}");
    machine.eventually("the pod's own limit is told beside it", |verdict| {
        let kills = kills(verdict);
        ensure!(kills.iter().any(|[subject, severity, _]| subject == "pod a-1" && severity == "warning"), "{kills:?}");
        Ok(())
    })?;

    // They are told for ten minutes.
    machine.sleep(11 * 60, "")?;
    machine.eventually("it is over", |verdict| {
        ensure!(kills(verdict).is_empty(), "{:?}", kills(verdict));
        Ok(())
    })
}

#[test]
fn the_working_set_is_what_the_kubelet_counts() -> Result<()> {
    let mut machine = Machine::boot()?;
    machine.run(PODS)?;
    machine.run("echo 100M > /sys/fs/cgroup/kubepods.slice/memory.max")?;
    // A file that a pod has written, which the kernel may drop, and memory that it may not.
    machine.run("modprobe brd rd_nr=1 rd_size=65536 && mke2fs /dev/ram0 && mount -t ext4 /dev/ram0 /tmp")?;
    let scope = format!("{}/cri-containerd-bc.scope", cgroup("b"));
    machine.run(&format!("echo 0 > {scope}/cgroup.procs; dd if=/dev/zero of=/tmp/file bs=1M count=40; sync"))?;
    let hold = format!("echo 0 > {scope}/cgroup.procs; dd if=/dev/zero bs=40M count=1 | sleep 1000");
    machine.run(&format!("({hold}) >/dev/null 2>&1 &"))?;
    let numbers = "cd /sys/fs/cgroup; s() { awk -v k=$2 '$1 == k { print $2 }' $1/memory.stat; }; \
                   cat kubepods.slice/memory.current; s kubepods.slice inactive_file; \
                   s . anon; s . file; s . inactive_file; nodevitals check -o json; true";
    within(SOON, || {
        let text = machine.run(numbers)?;
        let (numbers, json) = text.split_at(text.find('{').context("JSON")?);
        let numbers: Vec<u64> = numbers.lines().map(str::parse).collect::<Result<_, _>>()?;
        let [used, inactive, anon, file, inactive_of_all] = numbers[..] else { bail!("{numbers:?}") };
        ensure!(used > 70 << 20 && inactive > 30 << 20, "{used} bytes are used, {inactive} of them by files");
        let memory = &serde_json::from_str::<Value>(json)?["snapshot"]["memory"]["yes"];
        let number = |value: &Value| value.as_u64().with_context(|| memory.to_string());
        let (pods, node) =
            (number(&memory["pods"]["workingSet"])?, number(&memory["total"])? - number(&memory["kubeletAvailable"])?);
        // Others use some meanwhile.
        ensure!(pods.abs_diff(used - inactive) < 1 << 20, "{pods}, the kubelet's {}", used - inactive);
        let kubelet = anon + file - inactive_of_all;
        ensure!(node.abs_diff(kubelet) < 8 << 20, "{node}, the kubelet's {kubelet}");
        Ok(())
    })
}
