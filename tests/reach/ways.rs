//! What reports say of the way, behind each firewall; with the system's ssh, and with the built-in client.

use std::time::Duration;

use serde_json::Value;

use crate::hosts::{CLIENTS, Hosts, said};
use crate::network::Rule;

/// Ten seconds to find a way, and what the rest takes on a busy machine.
const SET_UP: Duration = Duration::from_secs(25);

#[track_caller]
fn assert_way(summary: &Value, transport: &str, dialler: &str) {
    let found = (summary["transport"].as_str(), summary["dialler"].as_str());
    assert_eq!(found, (Some(transport), Some(dialler)), "{summary}");
}

/// PATH-6: with nothing in between it is TCP, at once; and each other way if it is asked for.
#[test]
fn on_an_open_network_every_way_works() {
    let hosts = Hosts::new();
    for client in CLIENTS {
        let summary = hosts.pushed(&[client], "far", SET_UP);
        assert_way(&summary, "tcp+tls", "client");
        assert_eq!(summary["reason"], "first choice");
        assert_way(&hosts.pulled(&[client]), "tcp+tls", "client");
    }
    let pushed = |flags: &[&str]| hosts.pushed(flags, "far", SET_UP);
    assert_way(&pushed(&["--encrypt=off"]), "tcp", "client");
    let ways: [(&[&str], &str, &str); 5] = [
        (&["--transport=quic"], "quic", "client"),
        (&["--transport=quic", "--reverse", "--congestion=cubic"], "quic", "agent"),
        (&["--reverse"], "tcp+tls", "agent"),
        (&["--transport=ssh"], "ssh", "client"),
        (&["--transport=ssh", "--ssh-connections=1"], "ssh", "client"),
    ];
    for (flags, transport, dialler) in ways {
        let summary = pushed(flags);
        assert_way(&summary, transport, dialler);
        assert_eq!(summary["reason"], "as asked for");
        assert!(summary["encrypted"].as_bool().unwrap());
        assert_way(&hosts.pulled(flags), transport, dialler);
    }
}

#[test]
fn over_ipv6_alone_everything_works_too() {
    let hosts = Hosts::new();
    hosts.without_ipv4();
    for (flags, transport, dialler) in [
        (&[CLIENTS[0]][..], "tcp+tls", "client"),
        (&[CLIENTS[1]], "tcp+tls", "client"),
        (&["--reverse"], "tcp+tls", "agent"),
        (&["--transport=quic"], "quic", "client"),
        (&["--transport=ssh"], "ssh", "client"),
    ] {
        let summary = hosts.pushed(flags, "far6", SET_UP);
        assert_way(&summary, transport, dialler);
        let peer = if transport == "ssh" { "far6" } else { "[fd78::2]" };
        assert!(summary["peer"].as_str().unwrap().starts_with(peer), "{summary}");
    }
}

/// PATH-4: the agent dials where the client cannot; what is dropped silently costs seconds only.
#[test]
fn behind_a_closed_agent_the_agent_dials() {
    let hosts = Hosts::new();
    for (client, rule) in CLIENTS.into_iter().zip([Rule::Drop, Rule::Reject]) {
        hosts.filter(Rule::Open, rule, "");
        let summary = hosts.pushed(&[client], "far", SET_UP);
        assert_way(&summary, "tcp+tls", "agent");
        let reason = summary["reason"].as_str().unwrap();
        assert!(reason.contains("TCP to 10.78.0.2"), "{reason}");
    }
    hosts.filter(Rule::Open, Rule::Drop, "");
    assert_way(&hosts.pulled(&[]), "tcp+tls", "agent");
}

#[test]
fn a_closed_client_dials_as_ever() {
    let hosts = Hosts::new();
    for (client, rule) in CLIENTS.into_iter().zip([Rule::Drop, Rule::Reject]) {
        hosts.filter(rule, Rule::Open, "");
        assert_way(&hosts.pushed(&[client], "far", SET_UP), "tcp+tls", "client");
    }
}

/// PATH-6: where both are closed, data goes inside ssh.
#[test]
fn where_only_ssh_passes_data_goes_inside_it() {
    let hosts = Hosts::new();
    for (client, rule) in CLIENTS.into_iter().zip([Rule::Drop, Rule::Reject]) {
        hosts.filter(rule, rule, "");
        assert_way(&hosts.pushed(&[client], "far", SET_UP), "ssh", "client");
        assert_way(&hosts.pulled(&[client]), "ssh", "client");
    }
}

/// PATH-2: one range of ports is enough, at either end.
#[test]
fn one_range_of_ports_is_enough() {
    let hosts = Hosts::new();
    hosts.filter(Rule::Drop, Rule::Drop, "tcp dport 50000-50003 accept");
    for client in CLIENTS {
        let range = [client, "--port-range", "50000:50003"];
        let summary = hosts.pushed(&range, "far", SET_UP);
        assert_way(&summary, "tcp+tls", "client");
        assert!(summary["peer"].as_str().unwrap().starts_with("10.78.0.2:5000"), "{summary}");
        let reversed = [&range[..], &["--reverse"]].concat();
        assert_way(&hosts.pushed(&reversed, "far", SET_UP), "tcp+tls", "agent");
    }
}

#[test]
fn where_only_udp_passes_it_is_quic() {
    let hosts = Hosts::new();
    hosts.filter(Rule::Drop, Rule::Drop, "meta l4proto udp accept");
    for client in CLIENTS {
        assert_way(&hosts.pushed(&[client], "far", SET_UP), "quic", "client");
    }
}

/// QUIC's packets grow with the link's, and never so long that the kernel refuses what it is to cut up.
#[test]
fn on_a_link_of_large_packets_quic_works_as_ever() {
    let hosts = Hosts::with_jumbo_frames();
    for flags in [&["--transport=quic"][..], &["--transport=quic", "--reverse"]] {
        assert_eq!(hosts.pushed(flags, "far", SET_UP)["transport"], "quic");
        assert_eq!(hosts.pulled(flags)["transport"], "quic");
    }
}

/// What the kernel is to cut up is longer than any packet may be that a link carries. Between two
/// namespaces it comes as it is, so that a filter can tell whether it was handed over like that.
#[test]
fn without_offload_no_datagram_is_longer_than_the_link() {
    let hosts = Hosts::new();
    hosts.lose_long_datagrams();
    for flags in [&["--quic-gso=off"][..], &["--quic-gso=off", "--reverse"]] {
        let flags = [&["--transport=quic"], flags].concat();
        assert_eq!(hosts.pushed(&flags, "far", SET_UP)["transport"], "quic");
        assert_eq!(hosts.pulled(&flags)["transport"], "quic");
    }
    std::fs::remove_dir_all(hosts.path("dst")).unwrap();
    let output = hosts.push(&["--transport=quic"], "far").output().unwrap();
    assert_eq!(output.status.code(), Some(43), "offload is on by default: {}", said(&output));
}

/// PATH-7: small packets pass on every way but ssh's, and large ones do not.
#[test]
fn a_black_hole_for_large_packets_is_found_at_once() {
    let hosts = Hosts::new();
    hosts.lose_large_packets();
    assert_way(&hosts.pushed(&[], "far", SET_UP), "ssh", "client");
}

/// PATH-12: where a second login is not possible without asking, the control channel carries all.
#[test]
fn with_one_login_only_the_control_channel_carries_all() {
    let hosts = Hosts::with_server("MaxSessions 1");
    hosts.filter(Rule::Drop, Rule::Drop, "");
    // The key is good for the agent, and for nothing that is started beside it.
    let guard = format!(
        "command=\"case $SSH_ORIGINAL_COMMAND in *--join) exit 1;; esac; eval \\\"$SSH_ORIGINAL_COMMAND\\\"\" {}",
        std::fs::read_to_string(hosts.path("user.pub")).unwrap()
    );
    std::fs::write(hosts.path("authorized_keys"), guard).unwrap();
    for client in CLIENTS {
        let flags = [client, "--transport=ssh"];
        assert_way(&hosts.pushed(&flags, "far", SET_UP), "ssh", "client");
        assert_way(&hosts.pulled(&flags), "ssh", "client");
    }
}

/// A session is all that is needed of a connection: further ones are connections of their own.
#[test]
fn one_session_for_each_connection_is_enough() {
    let hosts = Hosts::with_server("MaxSessions 1");
    for client in CLIENTS {
        assert_way(&hosts.pushed(&[client], "far", SET_UP), "tcp+tls", "client");
        for connections in ["--ssh-connections=1", "--ssh-connections=4"] {
            let flags = [client, "--transport=ssh", connections];
            assert_way(&hosts.pushed(&flags, "far", SET_UP), "ssh", "client");
        }
    }
}

/// PATH-12: more logins than the server admits at a time are refused, and what has come in carries all.
#[test]
fn a_server_that_admits_few_logins_at_a_time_is_enough() {
    let hosts = Hosts::with_server("MaxStartups 2:100:2");
    for client in CLIENTS {
        let flags = [client, "--transport=ssh", "--ssh-connections=8", "-c64K"];
        assert_way(&hosts.pushed(&flags, "far", SET_UP), "ssh", "client");
        assert_way(&hosts.pulled(&flags), "ssh", "client");
    }
}

/// PATH-6: a way that was asked for and does not work is told with all that was tried.
#[test]
fn a_way_that_was_asked_for_and_fails_is_exit_43() {
    let hosts = Hosts::new();
    hosts.filter(Rule::Drop, Rule::Drop, "");
    for (flags, words) in [
        (&["--transport=tcp"][..], ["TCP to 10.78.0.2:", "from the other host to this one"]),
        (&["--reverse"], ["TCP from the other host to this one", "10.78.0.1:"]),
        (&["--transport=quic"], ["QUIC to 10.78.0.2:", "QUIC from the other host"]),
    ] {
        let begin = std::time::Instant::now();
        let output = hosts.push(flags, "far").output().unwrap();
        assert_eq!(output.status.code(), Some(43), "{}", said(&output));
        for word in words.into_iter().chain(["no answer", "--port-range"]) {
            assert!(said(&output).contains(word), "no {word:?} in {}", said(&output));
        }
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    }
}
