//! What a diagnosis says behind firewalls: each way by itself.

use serde_json::Value;

use crate::hosts::{Hosts, said, summary};
use crate::network::Rule;

/// A diagnosis that came to its end.
#[track_caller]
fn diagnosed(hosts: &Hosts, flags: &[&str]) -> Value {
    let output = hosts.measure("doctor", &[flags, &["-p2"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    summary(&output)
}

/// Which ways work, as transport and who dials.
fn working(diagnosis: &Value) -> Vec<(String, String)> {
    let ways = diagnosis["ways"].as_array().unwrap().iter();
    let ways = ways.filter(|way| way["works"] == true && way["transport"] != "ssh");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    ways.map(|way| (text(&way["transport"]), text(&way["dialler"]))).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect()
}

/// PATH-4, MEASURE-6: one direction is closed, and the other is found, measured and recommended.
#[test]
fn the_direction_that_works_is_told() {
    let hosts = Hosts::new();
    hosts.filter(Rule::Open, Rule::Drop, "");
    let diagnosis = diagnosed(&hosts, &[]);
    assert_eq!(working(&diagnosis), pairs(&[("tcp", "agent"), ("quic", "agent")]), "{diagnosis}");
    let closed = &diagnosis["ways"][0];
    assert!(closed["error"].as_str().unwrap().contains("10.78.0.2:"), "{closed}");
    assert_eq!(diagnosis["measured"]["dialler"], "agent");
    assert!(diagnosis["recommended"].as_str().unwrap().contains("--reverse"), "{diagnosis}");
    assert_eq!(diagnosis["runs"].as_array().unwrap().len(), 4);

    hosts.filter(Rule::Reject, Rule::Open, "");
    let diagnosis = diagnosed(&hosts, &["--ssh=builtin"]);
    let found = pairs(&[("tcp", "client"), ("quic", "client")]);
    assert_eq!(working(&diagnosis), found, "{diagnosis}");
    assert!(diagnosis["advice"].to_string().contains("--port-range"), "{diagnosis}");
    assert!(!diagnosis["recommended"].as_str().unwrap().contains("--reverse"), "{diagnosis}");
}

/// PATH-8: with nothing but ssh, that is measured; and what was asked for and fails is exit 43.
#[test]
fn where_only_ssh_passes_it_is_measured() {
    let hosts = Hosts::new();
    hosts.filter(Rule::Reject, Rule::Reject, "");
    let diagnosis = diagnosed(&hosts, &[]);
    assert_eq!(working(&diagnosis), [], "{diagnosis}");
    assert_eq!(diagnosis["measured"]["transport"], "ssh");
    assert!(diagnosis["recommended"].as_str().unwrap().contains("--transport=ssh"));
    for verb in ["doctor", "bench"] {
        let output = hosts.measure(verb, &["--transport=tcp", "-p1"]);
        assert_eq!(output.status.code(), Some(43), "{}", said(&output));
        let error = summary(&output);
        assert_eq!((&error["event"], &error["exit_code"]), (&"error".into(), &43.into()));
        assert!(error["text"].as_str().unwrap().contains("10.78.0.2:"), "{error}");
    }
}
