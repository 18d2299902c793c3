//! A name that stands for several hosts, such as the login nodes of a cluster: data goes to the one that
//! ssh reached, whatever else the name leads to.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::hosts::{CLIENTS, Hosts, PATIENCE, said, summary, until};
use crate::network::Rule;

/// Ten seconds to find a way, and what the rest takes on a busy machine.
const SET_UP: Duration = Duration::from_secs(25);

/// The one port on which agents listen here.
const PORT: u16 = 50_000;

const RANGE: &str = "--port-range=50000";

/// Somebody else's program on a host, which takes connections and says nothing, for as long as this
/// value lives.
struct Stranger {
    taken: Receiver<TcpStream>,
}

impl Stranger {
    fn on(network: File) -> Self {
        let ((listening, is_listening), (take, taken)) = (channel(), channel());
        thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), kind).unwrap();
            let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
            listening.send(()).unwrap();
            while let Ok((stream, _)) = listener.accept() {
                if take.send(stream).is_err() {
                    return;
                }
            }
        });
        is_listening.recv().unwrap();
        Self { taken }
    }

    /// How many have come so far.
    fn count(&self) -> usize {
        self.taken.try_iter().count()
    }
}

/// The nodes' addresses, and what they are called.
const FAR: (&str, &str) = ("far", "10.78.0.2");
const SOURCE: (&str, &str) = ("source", "10.78.3.2");

/// PATH-2: ssh passes over a node that is down for it, and data follows, though somebody listens on
/// that node at the very port of the agent.
#[test]
fn data_goes_to_the_node_that_ssh_reached() {
    for (other, reached) in [(FAR, SOURCE), (SOURCE, FAR)] {
        let hosts = Hosts::new().and_source();
        hosts.call("cluster", &[other.1, reached.1]);
        hosts.refuse_ssh(&[other.0]);
        let stranger = Stranger::on(hosts.network(other.0));
        for client in CLIENTS {
            let summary = hosts.pushed(&[client, RANGE], "cluster", SET_UP);
            assert_eq!(summary["transport"], "tcp+tls", "{summary}");
            assert_eq!(summary["peer"], format!("{}:{PORT}", reached.1), "{summary}");
            assert_eq!(summary["reason"], "first choice");
            assert_eq!(stranger.count(), 0, "{client}: the other node was dialled");
        }
    }
}

/// PATH-12: the next login would reach another node, which knows nothing of the agent.
#[test]
fn further_logins_go_to_the_node_of_the_first() {
    let hosts = Hosts::new().and_source();
    hosts.filter(Rule::Drop, Rule::Drop, "");
    hosts.filter_source(Rule::Drop, Rule::Drop, "");
    for client in CLIENTS {
        let _ = std::fs::remove_dir_all(hosts.path("dst"));
        hosts.call("cluster", &[SOURCE.1, FAR.1]);
        let push = hosts.push(&[client, "--progress=json", "-c64K"], "cluster").spawn().unwrap();
        assert!(until(PATIENCE, || !hosts.source_agents().is_empty()));
        hosts.call("cluster", &[FAR.1, SOURCE.1]);
        let output = push.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        hosts.assert_same("dst");
        assert_eq!(summary(&output)["transport"], "ssh");
        assert!(!said(&output).contains(REFUSED), "{client}: {}", said(&output));
    }
}

/// What is said where ssh does not log in again.
const REFUSED: &str = "no further ssh connections";

/// A connection that is shared was made when the name stood for another node: there the agent is.
#[test]
fn data_follows_a_connection_that_was_there_before() {
    let hosts = Hosts::new().and_source();
    hosts.call("cluster", &[SOURCE.1]);
    let master = Master::start(&hosts);
    hosts.call("cluster", &[FAR.1]);
    let stranger = Stranger::on(hosts.network(FAR.0));
    let control = format!("ControlPath={}", master.socket.display());
    let flags = ["-o", &control, RANGE];
    let summary = hosts.pushed(&flags, "cluster", SET_UP);
    assert_eq!(summary["transport"], "tcp+tls", "{summary}");
    assert_eq!(summary["peer"], format!("{}:{PORT}", SOURCE.1), "{summary}");
    drop(stranger);
    // Further logins come to where the name leads now, where there is nothing to join: that is no failure.
    let flags = [&flags[..2], &["--transport=ssh"]].concat();
    assert_eq!(hosts.pushed(&flags, "cluster", SET_UP)["transport"], "ssh");
}

/// A connection of ssh that others share.
struct Master<'a> {
    hosts: &'a Hosts,
    socket: std::path::PathBuf,
}

impl<'a> Master<'a> {
    fn start(hosts: &'a Hosts) -> Self {
        let socket = hosts.path("control");
        let mut command = hosts.ssh();
        command.args(["-M", "-N", "-f", "-S"]).arg(&socket).arg("cluster");
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success() && until(PATIENCE, || Path::new(&socket).exists()));
        Self { hosts, socket }
    }
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        let mut command: Command = self.hosts.ssh();
        command.args(["-q", "-O", "exit", "-S"]).arg(&self.socket).arg("cluster");
        let _ = command.stderr(Stdio::null()).status();
    }
}
