//! Rules in words.

use crate::facts::{Action, FilterRule};

/// A rule in the language of iptables, as far as it was understood.
pub(in crate::checks) fn describe(rule: &FilterRule) -> String {
    let mut text = String::new();
    let mut add = |not: bool, option: &str, value: &str| {
        if not {
            text.push_str("! ");
        }
        text.push_str(option);
        text.push(' ');
        text.push_str(value);
        text.push(' ');
    };
    for (option, net) in [("-s", &rule.source), ("-d", &rule.destination)] {
        if let Some(net) = net {
            add(net.not, option, &net.value.to_string());
        }
    }
    for (option, link) in [("-i", &rule.input), ("-o", &rule.output)] {
        if let Some(link) = link {
            add(link.not, option, &link.value);
        }
    }
    if let Some(protocol) = &rule.protocol {
        let name = match protocol.value {
            1 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            number => number.to_string(),
        };
        add(protocol.not, "-p", &name);
    }
    for (from, to) in &rule.ports {
        add(false, "--dport", &if from == to { from.to_string() } else { format!("{from}:{to}") });
    }
    for set in &rule.sets {
        add(set.not, "--match-set", &set.value);
    }
    if rule.other_matches {
        text.push_str("... ");
    }
    match &rule.action {
        Action::Accept => text.push_str("-j ACCEPT"),
        Action::Drop => text.push_str("-j DROP"),
        Action::Reject => text.push_str("-j REJECT"),
        _ => text.push_str("-j ..."),
    }
    text
}

/// What a rule's counter says.
pub(in crate::checks) fn counted(rule: &FilterRule) -> String {
    match rule.packets {
        None => "it has no counter".to_owned(),
        Some(0) => "it has matched no packet yet".to_owned(),
        Some(packets) => format!("it has matched at least {packets} packets"),
    }
}
