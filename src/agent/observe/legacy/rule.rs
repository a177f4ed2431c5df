//! One rule as `iptables-save` prints it: what it does and which packets it matches. An option that is not known here makes
//! a rule match less than it seems to, never more.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::agent::observe::nftables::rule::values::set;
use crate::agent::observe::nftables::xt::target_by_name;
use crate::facts::{Action, FilterRule, Is};

/// Reads what follows `-A CHAIN`; `is_chain` says whether a target is a chain.
pub(crate) fn rule(text: &str, position: u32, is_chain: impl Fn(&str) -> bool) -> FilterRule {
    let mut rule = FilterRule::new(position);
    let (mut rest, mut not) = (text, false);
    // After the target come its own options.
    let mut target = "";
    while let Some((option, after)) = word(rest) {
        rest = after;
        if option == "!" {
            not = true;
            continue;
        }
        // `-m NAME` only announces, and options of targets restrict nothing.
        let flag = !option.starts_with('-') || option == "--syn" || option == "--fragment" || option == "-f";
        if flag {
            rule.other_matches |= target.is_empty();
            not = false;
            continue;
        }
        let Some((value, after)) = word(rest) else { break };
        if target.is_empty() || option == "--to-destination" {
            rest = after;
            if option == "-j" || option == "-g" {
                target = value;
                rule.action = action(value, option == "-g", &is_chain);
                rule.marks = value == "MARK";
            } else if option == "--to-destination" {
                rule.action = Action::Dnat(destination(value));
            } else {
                let understood = condition(&mut rule, option, value, not);
                rule.other_matches |= !understood;
            }
        }
        not = false;
    }
    rule
}

fn action(target: &str, goto: bool, is_chain: &impl Fn(&str) -> bool) -> Action {
    match target {
        _ if is_chain(target) && goto => Action::Goto(target.to_owned()),
        _ if is_chain(target) => Action::Jump(target.to_owned()),
        "ACCEPT" => Action::Accept,
        "DROP" => Action::Drop,
        "REJECT" => Action::Reject,
        "RETURN" => Action::Return,
        "QUEUE" | "NFQUEUE" => Action::Queue,
        "DNAT" => Action::Dnat(None),
        _ => target_by_name(target),
    }
}

/// Adds a condition; false when it is not understood.
fn condition(rule: &mut FilterRule, option: &str, value: &str, not: bool) -> bool {
    match option {
        "-m" => true,
        "--comment" => {
            rule.add_comment(&unquoted(value));
            true
        }
        "-p" => set(&mut rule.protocol, protocol(value), not),
        "-s" => set(&mut rule.source, net(value), not),
        "-d" => set(&mut rule.destination, net(value), not),
        "-i" => set(&mut rule.input, Some(value.to_owned()), not),
        "-o" => set(&mut rule.output, Some(value.to_owned()), not),
        "--dport" | "--dports" if !not && rule.ports.is_empty() => match value.split(',').map(range).collect() {
            Some(ports) => {
                rule.ports = ports;
                true
            }
            None => false,
        },
        "--ctstate" | "--state" => match value.split(',').map(state).sum::<Option<u32>>() {
            Some(states) => {
                let states = if not { !states } else { states };
                rule.states = Some(states & rule.states.unwrap_or(u32::MAX));
                true
            }
            None => false,
        },
        "--mark" => set(&mut rule.mark, mark(value), not),
        "--match-set" => {
            rule.sets.push(Is::new(value.to_owned(), not));
            // The contents are not known here.
            false
        }
        _ => false,
    }
}

fn protocol(name: &str) -> Option<u8> {
    Some(match name {
        "icmp" => 1,
        // Debian's name, and that of RHEL.
        "ipencap" | "ipv4" => 4,
        "tcp" => 6,
        "udp" => 17,
        "esp" => 50,
        "ah" => 51,
        "ipv6-icmp" | "icmpv6" => 58,
        "sctp" => 132,
        _ => return name.parse().ok(),
    })
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once(':').unwrap_or((text, text));
    Some((from.parse().ok()?, to.parse().ok()?))
}

fn state(name: &str) -> Option<u32> {
    Some(match name {
        "INVALID" => FilterRule::INVALID,
        "ESTABLISHED" => FilterRule::ESTABLISHED,
        "RELATED" => FilterRule::RELATED,
        "NEW" => FilterRule::NEW,
        "UNTRACKED" => FilterRule::UNTRACKED,
        _ => return None,
    })
}

/// `0x4000/0x4000`, or without the mask.
fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    Some((number(value)?, mask.map_or(Some(u32::MAX), number)?))
}

/// `10.0.0.5:80`, `[fd00::5]:80`; without a port it stays as it was.
fn destination(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 0)))
}

/// A word without the quotes around it, and without the backslashes before quotes inside.
fn unquoted(word: &str) -> String {
    let inner = word.strip_prefix('"').map_or(word, |it| it.strip_suffix('"').unwrap_or(it));
    inner.replace("\\\"", "\"")
}

/// The next word, and what follows it; a quoted one whole, with its quotes.
fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches(' ');
    let (mut quoted, mut escaped) = (false, false);
    let end = text
        .bytes()
        .position(|byte| {
            let ends = byte == b' ' && !quoted;
            quoted ^= byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> FilterRule {
        rule(text, 0, |target| target.starts_with("KUBE-"))
    }

    #[test]
    fn targets_are_found_behind_comments_and_before_options() {
        for (text, expected) in [
            (r#"-m comment --comment "say -j DROP" -j KUBE-A"#, Action::Jump("KUBE-A".into())),
            (r#"-m comment --comment "a \" -j DROP" -g KUBE-B"#, Action::Goto("KUBE-B".into())),
            (
                "-p tcp -j DNAT --to-destination 10.0.0.1:80",
                Action::Dnat(Some("10.0.0.1:80".parse().expect("an address"))),
            ),
            ("! -s 10.0.0.0/8", Action::Continue),
            ("-j", Action::Continue),
            (r#"-m comment --comment "never closed"#, Action::Continue),
            ("-j REJECT --reject-with icmp-port-unreachable", Action::Reject),
            ("-j LOG --log-prefix \"x -j DROP\"", Action::Continue),
            ("-j MASQUERADE --random-fully", Action::Other("MASQUERADE".into())),
        ] {
            assert_eq!(read(text).action, expected, "{text}");
        }
    }

    #[test]
    fn conditions_are_read() {
        let rule = read(
            "-s 10.1.0.0/16 ! -d 10.2.3.4/32 -i cali+ ! -o eth0 -p tcp -m multiport --dports 53,100:200 -m conntrack \
             --ctstate RELATED,ESTABLISHED -m mark --mark 0x4000/0x4000 -m comment --comment \"a b\" -j DROP",
        );
        assert_eq!(rule.source, Some(Is::new("10.1.0.0/16".parse().expect("a prefix"), false)));
        assert_eq!(rule.destination, Some(Is::new("10.2.3.4/32".parse().expect("a prefix"), true)));
        assert_eq!(rule.input, Some(Is::new("cali+".into(), false)));
        assert_eq!(rule.output, Some(Is::new("eth0".into(), true)));
        assert_eq!((rule.protocol.as_ref().map(|it| it.value), rule.states), (Some(6), Some(6)));
        assert_eq!(rule.ports, [(53, 53), (100, 200)]);
        assert_eq!(rule.mark, Some(Is::new((0x4000, 0x4000), false)));
        assert_eq!(rule.comment.as_deref(), Some("a b"));
        assert!(!rule.other_matches);
    }

    #[test]
    fn what_is_not_understood_restricts() {
        for text in [
            "-m addrtype --dst-type LOCAL -j DROP",
            "-p tcp -m tcp --sport 5 -j DROP",
            "-p tcp -m tcp ! --dport 5 -j DROP",
            "-m set --match-set blocked src -j DROP",
            "-m limit --limit 3/min -j DROP",
            "-p tcp -m tcp --syn -j DROP",
            "-p tcp -m tcp --tcp-flags FIN,SYN SYN -j DROP",
            "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
            "-f -j DROP",
        ] {
            let rule = read(text);
            assert!(rule.other_matches && rule.action == Action::Drop, "{text}: {rule:?}");
        }
        assert_eq!(read("-m set ! --match-set blocked src -j DROP").sets, [Is::new("blocked".into(), true)]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(-[a-z]|--[a-z-]+|\"|\\\\|!| |[0-9a-fx:./,]|.){0,60}") {
            read(&text);
        }
    }
}
