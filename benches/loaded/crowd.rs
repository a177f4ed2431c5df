//! One look at everything on a crowded node: 250 pods, 1,500 processes, 500 mounts. The first one, which `check` makes and in
//! which everything is new, and one of an agent that runs: each of its sources once.

use anyhow::{Context, Result, ensure};

use crate::figures::figure;
use crate::machine::{Machine, program};
use crate::node::{self, PODS};
use crate::runtime;
use crate::support::netns::NetNs;

const PROCESSES: usize = 1500;
const MOUNTS: usize = 500;
/// So many looks, for the median.
const LOOKS: usize = 9;
/// How long the agent runs before it is measured, and while it is, in seconds: every source has looked at least twice.
const AGENT: [usize; 2] = [30, 120];

/// What the first process of the node does: it makes the crowd, says how large it is, and has the program look, each time with
/// the CPU that it took in user and in kernel mode, then once with all system calls counted. `$1` is the node's root, `$2` the program.
const NODE: &str = r#"
set -e
mount -t proc proc /proc
mount --bind /proc "$1/proc"
for ((i = 0; i < $3; i++)); do sleep 600 & done
for ((i = 0; i < $4; i++)); do
  mkdir -p "$1/var/lib/kubelet/pods/$i/volumes/token"
  mount -t tmpfs -o size=4k tmpfs "$1/var/lib/kubelet/pods/$i/volumes/token"
done
echo "crowd $(ls -d /proc/[0-9]* | wc -l) $(wc -l < /proc/1/mountinfo)"
look() { "$@" check -o json --host-root "$root" > "$root/look.json" || [ $? -lt 3 ]; }
root=$1 program=$2 TIMEFORMAT='start %3U %3S'
for ((i = 0; i < $5; i++)); do time "$program" --version > /dev/null; done
TIMEFORMAT='look %3U %3S'
for ((i = 0; i < $5; i++)); do time look "$program"; done
strace -f -c -U calls,name -o "$root/calls" "$program" check -o json --host-root "$root" > "$root/look.json" || [ $? -lt 3 ]
MALLOC_ARENA_MAX=1 "$program" standalone --host-root "$root" --log-level error > /dev/null &
agent=$!
sleep "$6"
used() { awk '{print $14 + $15}' "/proc/$agent/stat"; }
page() { curl -sf -m 5 http://127.0.0.1:10580/metrics; }
before=$(used) looks=$(page | awk '/^nodevitals_source_looks_total/ {n += $2} END {print n}')
sleep "$7"
after=$(used)
page | awk -v looks="$looks" -v used="$((after - before))" \
  '/^nodevitals_source_looks_total/ {n += $2; sources++} END {print "agent", used, n - looks, sources}'
kill "$agent"
sort -rn "$root/calls" | awk '$2 == "total" {print "calls", $1} $2 != "total" && $1 > 0 && n++ < 6 {print "call", $1, $2}'
"#;

/// Prints what a look takes.
pub fn look() -> Result<()> {
    let machine = Machine::worker()?;
    let pods = NetNs::new()?;
    node::pods(&machine, &pods)?;
    let socket = machine.path("run/containerd/containerd.sock");
    std::fs::create_dir_all(socket.parent().context("a directory")?)?;
    runtime::start(&socket, PODS)?;
    let program = program();
    let output = machine
        .net()
        .command("unshare")
        .args(["--pid", "--fork", "--mount", "--kill-child", "bash", "-c", NODE, "node", &machine.place("")])
        .arg(&program)
        .args([PROCESSES, MOUNTS, LOOKS, AGENT[0], AGENT[1]].map(|number| number.to_string()))
        .output()?;
    ensure!(output.status.success(), "the crowded node: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    let lines = |word: &str| -> Vec<Vec<f64>> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        lines.map(|line| line.split(' ').filter_map(|number| number.parse().ok()).collect()).collect()
    };
    let crowd = lines("crowd").pop().context("the size of the crowd")?;
    ensure!(crowd[0] >= PROCESSES as f64 && crowd[1] >= MOUNTS as f64, "{crowd:?} processes and mounts");
    let [start, look] = ["start", "look"].map(|word| median(lines(word)));
    let (start, look) = (start?, look?);
    let what = format!("crowd: {PODS} pods, {} processes, {} mounts", crowd[0], crowd[1]);
    // In hundredths of a second (`CLK_TCK`).
    let agent = lines("agent").pop().filter(|agent| agent.len() == 3).context("what the agent used")?;
    figure(&format!("{what}: CPU of a look of the agent"), agent[0] * 10.0 / agent[1] * agent[2], "ms", 15.0);
    println!("  of {} looks in {} s; a look is one of each of its {} sources", agent[1], AGENT[1], agent[2]);
    figure(&format!("{what}: its CPU of a quiet minute"), agent[0] / 100.0 * 60.0 / AGENT[1] as f64, "s", 0.1);
    figure(
        &format!("{what}: CPU of `check`, its first and only look"),
        (look[0] + look[1] - start[0] - start[1]) * 1000.0,
        "ms",
        15.0,
    );
    println!(
        "  of the look, user and system: {:.0} and {:.0} ms; of `--version`: {:.0} and {:.0} ms",
        look[0] * 1e3,
        look[1] * 1e3,
        start[0] * 1e3,
        start[1] * 1e3
    );
    for line in said.lines().filter(|line| line.starts_with("call")) {
        println!("  system {line}");
    }
    Ok(())
}

/// The one in the middle by the sum of user and system time.
fn median(mut all: Vec<Vec<f64>>) -> Result<Vec<f64>> {
    all.retain(|one| one.len() == 2);
    ensure!(all.len() == LOOKS, "{} of {LOOKS} looks", all.len());
    all.sort_by(|a, b| (a[0] + a[1]).total_cmp(&(b[0] + b[1])));
    Ok(all.swap_remove(LOOKS / 2))
}
