//! Transfers between two other hosts, seen from a third one.

use std::fs;
use std::process::{Child, Output};
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::hosts::{CLIENTS, Hosts, PATIENCE, said, size, summary, until};
use crate::network::Rule;
use crate::terminal::converse;

/// Ten seconds to find a way after two logins, and what the rest takes on a busy machine.
const SET_UP: Duration = Duration::from_secs(30);

#[track_caller]
fn assert_way(summary: &Value, transport: &str, dialler: &str) {
    let found = (summary["transport"].as_str(), summary["dialler"].as_str());
    assert_eq!(found, (Some(transport), Some(dialler)), "{summary}");
}

/// THIRD-1, THIRD-2, THIRD-3: the source's host is a client as any other.
#[test]
fn data_goes_straight_on_every_way() {
    let hosts = Hosts::new().and_source();
    let summary = hosts.copied(&[], SET_UP);
    assert_way(&summary, "tcp+tls", "source");
    assert_eq!(summary["reason"], "first choice");
    assert!(summary["peer"].as_str().unwrap().starts_with("10.78.0.2:"), "{summary}");
    let ways: [(&[&str], &str, &str); 5] = [
        (&["--encrypt=off"], "tcp", "source"),
        (&["--reverse"], "tcp+tls", "destination"),
        (&["--transport=quic"], "quic", "source"),
        (&["--ssh=builtin"], "tcp+tls", "source"),
        (&["--data-addr=10.78.4.1"], "tcp+tls", "source"),
    ];
    for (flags, transport, dialler) in ways {
        assert_way(&hosts.copied(flags, SET_UP), transport, dialler);
    }
}

/// PATH-4, THIRD-3: where the source cannot dial, the destination does.
#[test]
fn behind_a_closed_destination_it_dials_the_source() {
    let hosts = Hosts::new().and_source();
    hosts.filter_source(Rule::Open, Rule::Drop, "");
    let summary = hosts.copied(&[], SET_UP);
    assert_way(&summary, "tcp+tls", "destination");
    assert!(summary["reason"].as_str().unwrap().contains("TCP to 10.78.0.2"), "{summary}");
}

/// PATH-2: the source listens on the ports that its own environment names, whatever is asked for.
#[test]
fn a_source_that_is_dialled_listens_where_its_host_allows_it() {
    let hosts = Hosts::new().and_source();
    let rule = "tcp dport 50000 accept";
    hosts.filter_source(Rule::Drop, Rule::Drop, rule);
    let agent = hosts.script("agent", "FASTSYNC_PORT_RANGE=50000 exec fastsync \"$@\"");
    let flags = ["--reverse", "--port-range=60000:60001", "--agent-path", agent.to_str().unwrap()];
    assert_way(&hosts.copied(&flags, SET_UP), "tcp+tls", "destination");
}

/// THIRD-3: where neither can, data goes through the client, and that is said.
#[test]
fn where_neither_reaches_the_other_data_goes_through_the_client() {
    let hosts = Hosts::new().and_source();
    hosts.filter_source(Rule::Drop, Rule::Reject, "");
    for flags in [&[][..], &["--transport=ssh"]] {
        let summary = hosts.copied(flags, SET_UP);
        assert_way(&summary, "ssh", "source");
        let reason = summary["reason"].as_str().unwrap();
        assert!(reason.contains("data goes through the host of the client"), "{reason}");
    }
    fs::remove_dir_all(hosts.path("dst")).unwrap();
    let output = hosts.between("cp", &["--transport=tcp"], "source", "far").output().unwrap();
    assert_eq!(output.status.code(), Some(43), "{}", said(&output));
    for words in ["source: no data channel to far", "TCP from far to source"] {
        assert!(said(&output).contains(words), "no {words:?} in {}", said(&output));
    }
}

/// THIRD-3: through the client, too.
#[test]
fn over_ipv6_alone_data_goes_on_every_way() {
    let hosts = Hosts::new().and_source();
    hosts.without_ipv4();
    for (flags, transport, dialler) in [
        (&[][..], "tcp+tls", "source"),
        (&["--reverse"], "tcp+tls", "destination"),
        (&["--transport=quic"], "quic", "source"),
        (&["--transport=ssh"], "ssh", "source"),
    ] {
        let summary = hosts.copied_between(flags, ["source6", "far6"], SET_UP);
        assert_way(&summary, transport, dialler);
    }
}

/// THIRD-3: to both through a jump host; they reach each other straight, or only by the same way back.
#[test]
fn behind_a_jump_host_data_goes_straight_where_it_can() {
    let hosts = Hosts::new().and_source().and_gate();
    hosts.close_to_near("");
    let inner = ["inner-source", "inner"];
    for client in CLIENTS {
        let flags = [client, "-J", "gate", "--data-addr=10.78.4.1"];
        assert_way(&hosts.copied_between(&flags, inner, SET_UP), "tcp+tls", "source");
    }
    // What it is called behind the jump host is an address on a network that the source is not on.
    let summary = hosts.copied_between(&["-J", "gate"], inner, SET_UP);
    assert!(["tcp+tls", "ssh"].contains(&summary["transport"].as_str().unwrap()), "{summary}");
    for client in CLIENTS {
        let flags = [client, "-J", "gate", "--transport=ssh"];
        let summary = hosts.copied_between(&flags, inner, SET_UP);
        assert_way(&summary, "ssh", "source");
        let reason = summary["reason"].as_str().unwrap();
        assert!(reason.contains("data goes through the host of the client"), "{reason}");
    }
}

/// THIRD-2: one code for each host, and no more, whichever way data goes.
#[test]
fn with_a_second_factor_each_host_asks_once() {
    let hosts = Hosts::with_second_factor().and_source();
    let answers = [("Password: ", "246810"), ("Password: ", "246810")];
    let mut codes = 0;
    for client in CLIENTS {
        for (flag, transport) in [("--transport=auto", "tcp+tls"), ("--transport=ssh", "ssh")] {
            let _ = fs::remove_dir_all(hosts.path("dst"));
            let command = hosts.between_at_terminal(&[client, flag], "source", "far");
            let (output, screen) = converse(command, &answers);
            assert!(output.status.success(), "{client}: {} {screen}", said(&output));
            hosts.assert_same("dst");
            assert_way(&summary(&output), transport, "source");
            codes += 2;
            assert_eq!(hosts.codes(), codes, "{client}: {screen}");
            assert_eq!(screen.matches("Password: ").count(), 2, "{client}: {screen}");
        }
    }
}

/// The summary without what differs from run to run and from way to way, and with `-i` every line.
fn counts(output: &Output) -> (Value, Vec<String>) {
    assert!(output.status.success(), "{}", said(output));
    let mut summary = summary(output);
    // Where nothing has to be sent, all may have ended before a way is found.
    let way = ["peer", "dialler", "reason", "transport", "encrypted"];
    for name in way.into_iter().chain(["seconds", "bytes_per_second"]) {
        summary.as_object_mut().unwrap().remove(name);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<String> = text.lines().map(|line| line.replace("source:/", "/")).collect();
    lines.pop();
    lines.sort();
    (summary, lines)
}

/// THIRD-4, THIRD-6: what is told is what a push tells, dry or not, first or second.
#[test]
fn reports_and_counts_are_those_of_a_push() {
    let hosts = Hosts::new().and_source();
    std::os::unix::fs::symlink("below", hosts.path("src/link")).unwrap();
    fs::create_dir(hosts.path("src/empty")).unwrap();
    let mut ends = Vec::new();
    for is_between in [false, true] {
        let _ = fs::remove_dir_all(hosts.path("dst"));
        fs::create_dir(hosts.path("dst")).unwrap();
        fs::write(hosts.path("dst/extra"), "not there").unwrap();
        fs::File::open(hosts.path("dst")).unwrap().set_modified(UNIX_EPOCH).unwrap();
        let mut all = Vec::new();
        for flags in [&["-n"][..], &[], &[]] {
            let report = hosts.path("report");
            let report_flag = format!("--report={}", report.display());
            let more = ["--delete", "-i", "-i", "-a", "-c", "64K", "--stats", &report_flag];
            let flags = [flags, &more].concat();
            let output = if is_between {
                hosts.between("sync", &flags, "source", "far").output().unwrap()
            } else {
                hosts.synced(&flags)
            };
            let mut lines: Vec<String> =
                fs::read_to_string(&report).unwrap().lines().map(str::to_owned).collect();
            // The first line says when it was and how it was called.
            lines.remove(0);
            lines.sort();
            all.push((counts(&output), lines));
        }
        hosts.assert_same("dst");
        ends.push(all);
    }
    let (push, between) = (&ends[0], &ends[1]);
    for (push, between) in push.iter().zip(between) {
        assert_eq!(push.0.1, between.0.1, "the lines of -i");
        assert_eq!(push.0.0, between.0.0, "the summary");
        assert_eq!(push.1, between.1, "the report");
    }
    assert!(between[1].0.1.iter().any(|line| line.contains("extra")), "{:?}", between[1].0.1);
}

/// SEL-3: both may be the same host, which then has two agents.
#[test]
fn both_may_be_one_host() {
    let hosts = Hosts::new().and_source();
    let output = hosts.between("cp", &[], "far", "far").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    hosts.assert_same("dst");
    let mut command = hosts.between("sync", &[], "far", "far");
    command.arg(format!("far:{}/below", hosts.path("src").display()));
    let output = command.output().unwrap();
    assert!(!output.status.success(), "into itself: {}", said(&output));
}

/// A copy that has begun, slowly enough to be disturbed.
fn start(hosts: &Hosts, retries: &str) -> Child {
    let flags = ["--transport=ssh", "--retries", retries, "-c", "64K"];
    let child = hosts.between("cp", &flags, "source", "far").spawn().unwrap();
    let has_begun = until(PATIENCE, || size(&hosts.path("dst")) > 1_000_000);
    assert!(has_begun, "nothing comes");
    child
}

fn kill(pid: u32, signal: Signal) {
    // It may be gone already.
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal);
}

/// Of all that was started, on any of the three hosts, ssh included.
#[track_caller]
fn assert_all_gone(hosts: &Hosts) {
    let left = || [hosts.on_near(), hosts.logins()].concat();
    let gone = until(Duration::from_secs(15), || left().is_empty());
    assert!(gone, "left: {:?}", left());
}

/// THIRD-7: whoever is killed, nothing is left, and the same command goes on.
#[test]
fn whoever_is_killed_the_same_command_goes_on() {
    let hosts = Hosts::new().and_source();
    let end_ssh = |host: &str| {
        let all = hosts.on_near();
        let those = all.iter().filter(|(_, line)| line.starts_with("ssh ") && line.contains(host));
        those.for_each(|(pid, _)| kill(*pid, Signal::KILL));
    };
    for victim in 0..6 {
        let _ = fs::remove_dir_all(hosts.path("dst"));
        let child = start(&hosts, "0");
        match victim {
            0 => kill(child.id(), Signal::KILL),
            1 => kill(child.id(), Signal::INT),
            2 => hosts.source_agents().iter().for_each(|(pid, _)| kill(*pid, Signal::KILL)),
            3 => end_ssh(" -- source "),
            4 => end_ssh(" -- far "),
            _ => hosts.agents().iter().for_each(|(pid, _)| kill(*pid, Signal::KILL)),
        }
        let output = child.wait_with_output().unwrap();
        let code = [None, Some(20), Some(30), Some(30), Some(30), Some(30)][victim];
        // It may have been done already.
        assert!([code, Some(0)].contains(&output.status.code()), "{victim}: {}", said(&output));
        let (source, far) = ("to source was lost", "to far was lost");
        let host = ["", "", source, source, far, far][victim];
        assert!(output.status.success() || said(&output).contains(host), "{}", said(&output));
        assert_all_gone(&hosts);
        let output = hosts.between("cp", &["-c", "64K"], "source", "far").output().unwrap();
        assert!(output.status.success(), "{victim}: {}", said(&output));
        hosts.assert_same("dst");
        let resumed = summary(&output)["bytes_resumed"].as_u64().unwrap();
        let skipped = summary(&output)["bytes_skipped"].as_u64().unwrap();
        assert!(resumed + skipped > 0, "{victim}: {}", said(&output));
    }
}

/// THIRD-7: a connection that is lost is made again, with both hosts.
#[test]
fn a_lost_host_is_connected_again() {
    let hosts = Hosts::new().and_source();
    for is_source in [true, false] {
        let _ = fs::remove_dir_all(hosts.path("dst"));
        let child = start(&hosts, "2");
        let agents = if is_source { hosts.source_agents() } else { hosts.agents() };
        for (pid, _) in agents {
            kill(pid, Signal::KILL);
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        hosts.assert_same("dst");
        assert_all_gone(&hosts);
    }
}

/// THIRD-6: whatever goes wrong, it is said where.
#[test]
fn errors_name_their_host() {
    let hosts = Hosts::new().and_source();
    let fails = |from: &str, to: &str, code: i32, words: &str| {
        let output = hosts.between("cp", &["--retries=0"], from, to).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains(words), "no {words:?} in {}", said(&output));
    };
    fs::write(hosts.path("dst"), "in the way").unwrap();
    fails("source", "far", 5, "far: ");
    fs::remove_file(hosts.path("dst")).unwrap();
    fs::rename(hosts.path("src"), hosts.path("elsewhere")).unwrap();
    fails("source", "far", 11, "source: ");
    fs::rename(hosts.path("elsewhere"), hosts.path("src")).unwrap();
    fails("source", "10.78.0.77", 30, "10.78.0.77");
    fails("10.78.0.77", "far", 30, "10.78.0.77");
    assert_all_gone(&hosts);
}
