//! Logins that are not plain: behind jump hosts, with a second factor, to other accounts and ports. With the system's ssh, and
//! with the built-in client.

use std::time::Duration;

use serde_json::Value;

use crate::hosts::{CLIENTS, Hosts, said, summary};
use crate::terminal::converse;

/// Ten seconds to find a way, and what the rest takes on a busy machine.
const SET_UP: Duration = Duration::from_secs(25);

#[track_caller]
fn assert_way(summary: &Value, transport: &str, dialler: &str) {
    let found = (summary["transport"].as_str(), summary["dialler"].as_str());
    assert_eq!(found, (Some(transport), Some(dialler)), "{summary}");
}

/// PATH-6: data goes inside ssh where only the jump host leads there, and straight where it can.
#[test]
fn behind_a_jump_host() {
    let hosts = Hosts::new().and_gate();
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

/// A password is asked for once, whatever way the data takes.
#[test]
fn with_a_password_it_is_asked_for_once() {
    let hosts = Hosts::with_password();
    for client in CLIENTS {
        for transport in ["--transport=auto", "--transport=ssh"] {
            let _ = std::fs::remove_dir_all(hosts.path("dst"));
            let before = hosts.codes();
            let command = hosts.push_at_terminal(&[client, transport], "far");
            let answers = [("password: ", "wrong"), ("password: ", "246810")];
            let (output, screen) = converse(command, &answers);
            assert!(output.status.success(), "{client}: {} {screen}", said(&output));
            hosts.assert_same("dst");
            assert_eq!(hosts.codes() - before, 2, "{client}: {screen}");
            assert_eq!(screen.matches("password: ").count(), 2, "{client}: {screen}");
            assert!(!screen.contains("246810"), "{client} shows the password: {screen}");
        }
        let command = hosts.push_at_terminal(&[client], "far");
        let (output, screen) = converse(command, &[("password: ", "\x03")]);
        assert_eq!(output.status.code(), Some(20), "{client}: {} {screen}", said(&output));
    }
}

/// The account and the port are those that are named, whichever way they are named in.
#[test]
fn another_account_and_another_port_are_reached() {
    use std::os::unix::fs::MetadataExt as _;
    let hosts = Hosts::with_guest();
    let there = hosts.path("guest/there").display().to_string();
    let lines = "Host own\nHostName 10.78.0.2\nPort 2222\nUser guest\n\
                 Match originalhost matched exec \"true\"\nHostName 10.78.0.2\nUser guest\nPort 2222\n";
    let usual = std::fs::read_to_string(hosts.path("ssh_config")).unwrap();
    std::fs::write(hosts.path("ssh_config"), format!("{lines}{usual}")).unwrap();
    for client in CLIENTS {
        for (flags, location) in [
            (&[][..], format!("guest@far:{there}")),
            (&["--ssh-port=2222"], format!("guest@far:{there}")),
            (&[], format!("ssh://guest@far:2222{there}")),
            (&[], "ssh://guest@far:2222/~/there".to_owned()),
            (&["-o", "User=guest", "-o", "Port=2222"], "far:there".to_owned()),
            (&[], "own:there".to_owned()),
            (&[], "matched:there".to_owned()),
        ] {
            let output = hosts.push_to(&[&[client], flags].concat(), &location).output().unwrap();
            assert!(output.status.success(), "{client} {location}: {}", said(&output));
            hosts.assert_same("guest/there");
            let owner = std::fs::metadata(&there).unwrap().uid();
            assert_eq!(owner, 12345, "{client} {location}");
            std::fs::remove_dir_all(&there).unwrap();
        }
    }
}
