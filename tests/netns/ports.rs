//! Local ports: a range made narrow in the namespace, and real connections to a real listener.

use std::net::{TcpListener, TcpStream};

use anyhow::Result;

use crate::machine::Machine;

#[test]
fn one_destination_holds_nearly_all_ports_and_lets_go() -> Result<()> {
    let machine = Machine::worker()?;
    machine.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40099"])?;
    machine.run(&["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=40000-40009"])?;
    let connect = |port: u16, count: usize| {
        machine.net().run(|| {
            let listener = TcpListener::bind(("127.0.0.1", port))?;
            let clients = (0..count).map(|_| TcpStream::connect(("127.0.0.1", port))).collect::<Result<Vec<_>, _>>()?;
            Ok::<_, std::io::Error>((listener, clients))
        })
    };
    let spread = [connect(7001, 60)?, connect(7002, 60)?];
    let checked = machine.check()?;
    assert!(checked.finding("EphemeralPortsNearFull").is_err(), "ports are counted for each destination");
    assert_eq!(checked.json["snapshot"]["traffic"]["sockets"]["yes"]["ports"], 90);

    let busy = connect(7003, 72)?;
    let checked = machine.check()?;
    let finding = checked.finding("EphemeralPortsNearFull")?;
    assert_eq!(finding["subject"], "127.0.0.1 to 127.0.0.1:7003");
    assert!(finding["detail"].to_string().contains("hold 72 of 90 local ports"), "{finding}");
    assert_eq!(checked.json["snapshot"]["traffic"]["sockets"]["yes"]["busiest"][0]["sockets"], 72);

    drop((busy, spread));
    let checked = machine.check()?;
    assert!(checked.finding("EphemeralPortsNearFull").is_err(), "{:?}", checked.codes());
    Ok(())
}
