//! Processes that are killed while data goes inside ssh.

use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::hosts::{Hosts, PATIENCE, said, size, until};

/// A push inside ssh that has begun, slowly enough to be killed.
fn start(hosts: &Hosts, retries: &str) -> Child {
    let flags = ["--transport=ssh", "--retries", retries, "-c", "64K"];
    let child = hosts.push(&flags, "far").spawn().unwrap();
    let has_begun = until(PATIENCE, || size(&hosts.path("dst")) > 0);
    assert!(has_begun, "nothing comes");
    child
}

fn kill(pid: u32) {
    // It may be gone already.
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
}

#[track_caller]
fn assert_all_gone(hosts: &Hosts) {
    let gone = until(Duration::from_secs(15), || hosts.agents().is_empty());
    assert!(gone, "left: {:?}", hosts.agents());
}

/// SES-7, R12: no process is left at the other end, and the next run goes on.
#[test]
fn when_the_client_is_killed_nothing_is_left() {
    let hosts = Hosts::new();
    let mut child = start(&hosts, "0");
    kill(child.id());
    child.wait().unwrap();
    assert_all_gone(&hosts);
    hosts.pushed_again();
}

#[test]
fn when_the_agent_is_killed_its_further_logins_end_too() {
    let hosts = Hosts::new();
    let child = start(&hosts, "0");
    let agents = hosts.agents();
    let agents = agents.iter().filter(|(_, line)| !line.contains("--join"));
    agents.for_each(|(pid, _)| kill(*pid));
    let output = child.wait_with_output().unwrap();
    // It may have been done already.
    assert!([Some(0), Some(30)].contains(&output.status.code()), "{}", said(&output));
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
