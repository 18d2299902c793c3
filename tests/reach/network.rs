//! The networks between hosts, and what passes through them.

use std::fs;
use std::path::Path;

use crate::hosts::{Hosts, run};

/// What a host does with what comes in: ssh always passes, and so do answers.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    Open,
    /// What is not allowed is dropped without a word.
    Drop,
    /// What is not allowed is refused.
    Reject,
}

impl Hosts {
    /// Takes all IPv4 addresses away.
    pub fn without_ipv4(&self) {
        for host in self.all() {
            run("ip", &["-n", host, "-4", "addr", "flush", "scope", "global"]);
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &String> {
        [&self.near, &self.far].into_iter().chain(&self.gate).chain(&self.source)
    }

    /// What the source and the server let in; `allowed` is in nft's words and passes both.
    pub fn filter_source(&self, source: Rule, far: Rule, allowed: &str) {
        for (host, rule) in [(self.source.as_ref().unwrap(), source), (&self.far, far)] {
            self.filter_one(host, rule, allowed);
        }
    }

    /// A network of large packets, as within a data centre.
    pub fn with_jumbo_frames() -> Self {
        let hosts = Self::new();
        for host in [&hosts.near, &hosts.far] {
            run("ip", &["-n", host, "link", "set", "wan", "mtu", "9000"]);
        }
        hosts
    }

    /// What `near` sends straight to `far`, or to `source`, is dropped: all, or ssh only.
    pub fn close_to_near(&self, what: &str) {
        for host in [&self.far].into_iter().chain(&self.source) {
            let rules = format!(
                "ip saddr {{ 10.78.0.1, 10.78.3.1 }} {what} drop\nip6 saddr {{ fd78::1, fd78:3::1 }} drop\n"
            );
            self.rules(host, &rules);
        }
    }

    /// ssh is closed on these hosts, and all else is open.
    pub fn refuse_ssh(&self, hosts: &[&str]) {
        for (name, host) in [("far", Some(&self.far)), ("source", self.source.as_ref())] {
            let rules = if hosts.contains(&name) { "tcp dport 22 reject\n" } else { "" };
            if let Some(host) = host {
                self.rules(host, rules);
            }
        }
    }

    /// From now on, a name stands for these addresses on `near`.
    pub fn call(&self, name: &str, addresses: &[&str]) {
        let lines = addresses.iter().map(|address| format!("{address} {name}\n"));
        fs::write(self.path("names"), lines.collect::<String>()).unwrap();
    }

    /// The network namespace of a host.
    pub fn network(&self, host: &str) -> fs::File {
        let name = match host {
            "far" => &self.far,
            "source" => self.source.as_ref().unwrap(),
            _ => panic!("no host is called {host}"),
        };
        fs::File::open(Path::new("/run/netns").join(name)).unwrap()
    }

    /// A packet filter on `near`, and one on `far`; `allowed` is in nft's words and passes both.
    pub fn filter(&self, near: Rule, far: Rule, allowed: &str) {
        for (host, rule) in [(&self.near, near), (&self.far, far)] {
            self.filter_one(host, rule, allowed);
        }
    }

    fn filter_one(&self, host: &str, rule: Rule, allowed: &str) {
        let last = match rule {
            Rule::Open => "accept",
            Rule::Drop => "drop",
            Rule::Reject => "reject with icmpx admin-prohibited",
        };
        self.rules(
            host,
            &format!(
                "ct state established,related accept\niif lo accept\n\
                 meta l4proto icmpv6 accept\ntcp dport 22 accept\n{allowed}\n{last}\n"
            ),
        );
    }

    /// On both hosts, packets longer than 1000 bytes are lost, except those of ssh.
    pub fn lose_large_packets(&self) {
        for host in [&self.near, &self.far] {
            let rules = "tcp dport 22 accept\ntcp sport 22 accept\nmeta length > 1000 drop\n";
            self.rules(host, rules);
        }
    }

    /// On both hosts, UDP datagrams are lost that are longer than the link's packets.
    pub fn lose_long_datagrams(&self) {
        for host in [&self.near, &self.far] {
            self.rules(host, "meta l4proto udp meta length > 1500 drop\n");
        }
    }

    fn rules(&self, host: &str, rules: &str) {
        let table = format!(
            "flush ruleset\ntable inet gate {{\nchain input {{\n\
             type filter hook input priority 0; policy accept;\n{rules}}}\n}}\n"
        );
        let file = self.path("rules");
        fs::write(&file, table).unwrap();
        let output = self.on(host, "nft").arg("-f").arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A network with nothing in it.
pub fn add_host(name: &str) {
    run("ip", &["netns", "add", name]);
    run("ip", &["-n", name, "link", "set", "lo", "up"]);
}

/// A network between two hosts, on which the first is the second.
pub fn connect(second: &str, first: &str, link: &str, network: u8) {
    let ends = ["link", "add", link, "netns", second, "type", "veth", "peer", "name", link];
    run("ip", &[&ends[..], &["netns", first]].concat());
    for (host, end) in [(second, 2), (first, 1)] {
        let (four, six) =
            (format!("10.78.{network}.{end}/24"), format!("fd78:{network}::{end}/64"));
        run("ip", &["-n", host, "addr", "add", &four, "dev", link]);
        run("ip", &["-n", host, "addr", "add", &six, "dev", link, "nodad"]);
        run("ip", &["-n", host, "link", "set", link, "up"]);
    }
}
