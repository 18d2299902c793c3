//! Processes that are killed while data goes inside ssh.

use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::hosts::{CLIENTS, Hosts, PATIENCE, said, size, until};

/// A push inside ssh that has begun, slowly enough to be killed.
fn start(hosts: &Hosts, retries: &str) -> Child {
    start_with(hosts, CLIENTS[0], retries)
}

fn start_with(hosts: &Hosts, client: &str, retries: &str) -> Child {
    let flags = [client, "--transport=ssh", "--retries", retries, "-c", "64K"];
    let child = hosts.push(&flags, "far").spawn().unwrap();
    let has_begun = until(PATIENCE, || size(&hosts.path("dst")) > 0);
    assert!(has_begun, "nothing comes");
    child
}

fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

fn signal(pid: u32, signal: Signal) {
    // It may be gone already.
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal);
}

/// Of all that was started, on either host, ssh included.
#[track_caller]
fn assert_all_gone(hosts: &Hosts) {
    let left = || [hosts.on_near(), hosts.logins()].concat();
    let gone = until(Duration::from_secs(15), || left().is_empty());
    assert!(gone, "left: {:?}", left());
}

/// SES-7, R12: whatever is killed, no process is left at either end, and the next run goes on.
#[test]
fn whatever_is_killed_nothing_is_left() {
    let hosts = Hosts::new();
    for client in CLIENTS {
        for victim in ["client", "agent", "ssh", "sshd"] {
            let child = start_with(&hosts, client, "0");
            let all = [hosts.on_near(), hosts.logins()].concat();
            let is_victim = |pid: u32, line: &str| match victim {
                "client" => pid == child.id(),
                "agent" => line.ends_with("agent ") || line.contains("agent --cached"),
                "ssh" => line.starts_with("ssh ") && !line.contains(" -G "),
                _ => line.starts_with("sshd"),
            };
            let victims = all.iter().filter(|(pid, line)| is_victim(*pid, line));
            let victims: Vec<u32> = victims.map(|(pid, _)| *pid).collect();
            // The built-in client is no process of its own.
            assert_eq!(victims.is_empty(), (victim, client) == ("ssh", CLIENTS[1]), "{all:?}");
            for pid in victims {
                kill(pid);
            }
            let output = child.wait_with_output().unwrap();
            // It may have been done already.
            let codes = [Some(0), if victim == "client" { None } else { Some(30) }];
            assert!(codes.contains(&output.status.code()), "{client} {victim}: {}", said(&output));
            assert_all_gone(&hosts);
            hosts.pushed_again();
            std::fs::remove_dir_all(hosts.path("dst")).unwrap();
        }
    }
}

/// SES-7: an agent that waits for its predecessor to let go of the journal hears that its client gives up,
/// or is gone.
#[test]
fn an_agent_that_waits_for_another_hears_its_client() {
    let hosts = Hosts::new();
    let mut first = start(&hosts, "0");
    let first_agents: Vec<u32> = hosts.agents().into_iter().map(|(pid, _)| pid).collect();
    // Whatever becomes of its client, it keeps the lock.
    for pid in &first_agents {
        signal(*pid, Signal::STOP);
    }
    for last in [Signal::INT, Signal::KILL] {
        let flags = ["--transport=ssh", "--retries=0", "-c", "64K"];
        let second = hosts.push(&flags, "far").spawn().unwrap();
        let newer = || {
            let mut agents = hosts.agents();
            agents.retain(|(pid, _)| !first_agents.contains(pid));
            agents
        };
        assert!(until(PATIENCE, || !newer().is_empty()));
        signal(second.id(), last);
        let output = second.wait_with_output().unwrap();
        let code = if last == Signal::INT { Some(20) } else { None };
        assert_eq!(output.status.code(), code, "{}", said(&output));
        assert!(until(Duration::from_secs(12), || newer().is_empty()), "left: {:?}", newer());
    }
    for pid in first_agents {
        kill(pid);
    }
    kill(first.id());
    first.wait().unwrap();
    assert_all_gone(&hosts);
    hosts.pushed_again();
}

/// PATH-11, PATH-12: a further login that is lost costs nothing but what was on it.
#[test]
fn when_further_logins_are_killed_the_transfer_goes_on() {
    let hosts = Hosts::new();
    let child = start(&hosts, "0");
    let agents = hosts.agents();
    agents.iter().filter(|(_, line)| line.contains("--join")).for_each(|(pid, _)| kill(*pid));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    hosts.assert_same("dst");
    assert_all_gone(&hosts);
}

impl Hosts {
    /// The same push, which goes on from what is there.
    #[track_caller]
    fn pushed_again(&self) {
        let output = self.push(&["--transport=ssh", "-c", "64K"], "far").output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        self.assert_same("dst");
    }
}

/// PATH-1: resuming is the same on every way: killed on one, it goes on over another.
#[test]
fn what_one_way_began_another_ends() {
    let hosts = Hosts::new();
    let mut child = start(&hosts, "0");
    kill(child.id());
    child.wait().unwrap();
    assert_all_gone(&hosts);
    let mut command: Command = hosts.push(&["--transport=quic", "-c", "64K"], "far");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    hosts.assert_same("dst");
}
