//! Logins that are not plain: behind jump hosts, and with a second factor. With the system's ssh, and
//! with the built-in client.

use std::time::Duration;

use serde_json::Value;

use crate::hosts::{Hosts, Rule, said, summary};
use crate::terminal::converse;

/// Ten seconds to find a way, and what the rest takes on a busy machine.
const SET_UP: Duration = Duration::from_secs(25);

const CLIENTS: [&str; 2] = ["--ssh=system", "--ssh=builtin"];

#[track_caller]
fn assert_way(summary: &Value, transport: &str, dialler: &str) {
    let found = (summary["transport"].as_str(), summary["dialler"].as_str());
    assert_eq!(found, (Some(transport), Some(dialler)), "{summary}");
}

/// PATH-6: data goes inside ssh where only the jump host leads there, and straight where it can.
#[test]
fn behind_a_jump_host() {
    let hosts = Hosts::with_gate();
    for client in CLIENTS {
        hosts.close_to_near("");
        let pushed = |flags: &[&str]| hosts.pushed(&[&[client], flags].concat(), "inner", SET_UP);
        assert_way(&pushed(&["-J", "gate"]), "ssh", "client");
        assert_way(&pushed(&["-J", "gate,second"]), "ssh", "client");
        assert_way(&pushed(&["-o", "ProxyJump=root@gate:22"]), "ssh", "client");
        hosts.close_to_near("tcp dport 22");
        assert_way(&pushed(&["-J", "gate", "--data-addr=10.78.0.2"]), "tcp+tls", "client");
        let straight = hosts.push(&[client, "-o", "ConnectTimeout=1"], "far").output().unwrap();
        assert_eq!(straight.status.code(), Some(30), "{}", said(&straight));
    }
}

/// Behind every firewall the built-in client finds the way that the system's ssh finds; a session is
/// all that it needs of a connection.
#[test]
fn the_builtin_client_finds_the_same_ways() {
    let hosts = Hosts::with_server("MaxSessions 1");
    let reject = Rule::Reject;
    for (near, far, allowed, flags, server, transport, dialler) in [
        (Rule::Open, Rule::Open, "", &[][..], "far", "tcp+tls", "client"),
        (Rule::Open, Rule::Open, "meta nfproto ipv4 drop", &[], "far6", "tcp+tls", "client"),
        (Rule::Open, reject, "", &[], "far", "tcp+tls", "agent"),
        (reject, Rule::Open, "", &[], "far", "tcp+tls", "client"),
        (reject, reject, "", &[], "far", "ssh", "client"),
        (reject, reject, "", &["--ssh-connections=1"], "far", "ssh", "client"),
        (reject, reject, "meta l4proto udp accept", &[], "far", "quic", "client"),
    ] {
        hosts.filter(near, far, allowed);
        let summary = hosts.pushed(&[&["--ssh=builtin"], flags].concat(), server, SET_UP);
        assert_way(&summary, transport, dialler);
    }
    hosts.filter(reject, reject, "tcp dport 50000-50003 accept");
    let flags = ["--ssh=builtin", "--port-range", "50000:50003"];
    assert_way(&hosts.pushed(&flags, "far", SET_UP), "tcp+tls", "client");
    assert_way(&hosts.pulled(&flags), "tcp+tls", "client");
}

/// One prompt, whatever way the data takes: further logins would ask again.
#[test]
fn with_a_second_factor_one_code_is_asked_for() {
    let hosts = Hosts::with_second_factor();
    let mut codes = 0;
    for client in CLIENTS {
        for (flags, transport) in [(&[][..], "tcp+tls"), (&["--transport=ssh"], "ssh")] {
            let _ = std::fs::remove_dir_all(hosts.path("dst"));
            let command = hosts.push_at_terminal(&[&[client], flags].concat(), "far");
            let (output, screen) = converse(command, &[("Password: ", "246810")]);
            assert!(
                output.status.success(),
                "{client}: {} {screen} {}",
                said(&output),
                hosts.log()
            );
            hosts.assert_same("dst");
            assert_way(&summary(&output), transport, "client");
            codes += 1;
            assert_eq!(hosts.codes(), codes, "{client}: {screen}");
            assert_eq!(screen.matches("Password: ").count(), 1, "{client}: {screen}");
            assert!(!screen.contains("246810"), "{client} shows the code: {screen}");
        }
        let command = hosts.push_at_terminal(&[client], "far");
        let wrong = [("Password: ", "1"), ("Password: ", "2"), ("Password: ", "3")];
        let (output, screen) = converse(command, &wrong);
        assert_eq!(output.status.code(), Some(44), "{client}: {} {screen}", said(&output));
        codes += 3;
        assert_eq!(hosts.codes(), codes, "{client}: {screen}");
    }
}

/// Without a terminal nobody can be asked, and that is said.
#[test]
fn without_a_terminal_a_second_factor_is_an_error() {
    let hosts = Hosts::with_second_factor();
    let output = hosts.push(&["--ssh=builtin", "-o", "BatchMode=yes"], "far").output().unwrap();
    assert_eq!(output.status.code(), Some(44), "{}", said(&output));
    assert!(said(&output).contains("keyboard-interactive"), "{}", said(&output));
    assert_eq!(hosts.codes(), 0);
}
