//! WireGuard of the real kernel, which tells the port of a device to whoever asks its own family of generic netlink.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::machine::Machine;

/// What the program sees of WireGuard.
fn seen(machine: &mut Machine) -> Result<Value> {
    let check: Value = serde_json::from_str(&machine.run("nodevitals check -o json 2>/dev/null; true")?)?;
    check["snapshot"]["routing"]["yes"]
        .get("wireguard")
        .cloned()
        .with_context(|| format!("{}", check["snapshot"]["routing"]))
}

#[test]
fn the_port_of_a_device_is_the_one_at_which_the_kernel_listens() -> Result<()> {
    let mut machine = Machine::boot()?;
    let before = seen(&mut machine)?;
    ensure!(before == "absent", "{before}");
    machine
        .run("modprobe wireguard; ip link add wireguard.cali type wireguard; ip link add wg-v6.cali type wireguard")?;
    let down = seen(&mut machine)?;
    ensure!(down == json!({"yes": {}}), "a device that is down has none: {down}");
    // It chooses one by itself, and the kernel's own socket has it.
    machine.run("ip link set wireguard.cali up")?;
    let sockets = machine.run("cat /proc/net/udp")?;
    let port = sockets.lines().find_map(|line| {
        let local = line.split_whitespace().nth(1)?.strip_prefix("00000000:")?;
        u16::from_str_radix(local, 16).ok()
    });
    let port = port.context(sockets)?;
    let up = seen(&mut machine)?;
    ensure!(up == json!({"yes": {"wireguard.cali": port}}), "{port}: {up}");
    machine.run("ip link delete wireguard.cali; ip link delete wg-v6.cali")?;
    let after = seen(&mut machine)?;
    ensure!(after == "absent", "{after}");
    Ok(())
}
