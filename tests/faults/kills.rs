//! Processes that are killed or stopped, at any moment.

use std::time::Duration;

use rustix::process::Signal;

use crate::common::{Ground, Run, is_alive, signal, summary, until, until_deadline, written};

const LARGE: usize = 64 << 20;

/// Waits until this much has reached the destination, and returns the agent.
#[track_caller]
fn wait_for(ground: &Ground, run: &mut Run, bytes: u64) -> u32 {
    run.event("connected");
    let agent = run.agent();
    let dst = ground.path("dst");
    // In the end it is all there, whatever its blocks say.
    let is_far = || written(&dst) >= bytes || !is_alive(agent);
    until("data", || is_far().then_some(())).expect("nothing comes");
    agent
}

/// T05, R32: the client starts another agent and goes on.
#[test]
fn an_agent_that_is_killed_is_started_again() {
    let ground = Ground::with_files(LARGE);
    let mut run = Run::start(ground.push(&["-p", "2", "--retries", "3"]));
    let agent = wait_for(&ground, &mut run, 8 << 20);
    signal(agent, Signal::KILL);
    let (status, lines) = run.end();
    assert!(status.success(), "{lines:?}");
    ground.assert_equal();
    assert!(lines.iter().any(|line| line["event"] == "retrying"), "it was too late");
    assert_eq!(summary(&lines)["reconnects"], 1);
}

/// END-6: and without another try it is not a success.
#[test]
fn without_retries_the_loss_of_the_agent_is_exit_30() {
    let ground = Ground::with_files(LARGE);
    let mut run = Run::start(ground.push(&["-p", "2", "--retries", "0"]));
    let agent = wait_for(&ground, &mut run, 8 << 20);
    signal(agent, Signal::KILL);
    let (status, lines) = run.end();
    assert_eq!(status.code(), Some(30), "{lines:?}");
    let summary = ground.finish(&[]);
    assert!(summary["bytes_resumed"].as_u64().unwrap() > 0, "{summary}");
}

/// SES-7, T01 to T03, R12, JRN-4: ten moments, and the next run goes on from each.
#[test]
fn whoever_is_killed_and_whenever_the_next_run_goes_on() {
    const KILLS: u64 = 10;
    for kill in 0..KILLS {
        let ground = Ground::with_files(LARGE);
        let size = ground.size();
        let mut run = Run::start(ground.push(&["-p", "2", "--retries", "0"]));
        let agent = wait_for(&ground, &mut run, kill * size / KILLS);
        if kill % 3 != 0 {
            signal(run.pid(), Signal::KILL);
        }
        if kill % 3 != 1 {
            signal(agent, Signal::KILL);
        }
        run.end();
        let gone = until_deadline(Duration::from_secs(11), || (!is_alive(agent)).then_some(()));
        assert!(gone.is_some(), "the agent outlives its client");
        let before = written(&ground.path("dst"));
        let summary = ground.finish(&["-p", "2"]);
        let number = |name: &str| summary[name].as_u64().unwrap_or_else(|| panic!("{summary}"));
        let (sent, resumed) = (number("bytes_sent"), number("bytes_resumed"));
        let there = number("bytes_skipped");
        // Packs carry a table beside their files.
        assert!((size..size + 8192).contains(&(sent + resumed + there)), "{size}: {summary}");
        // What was written and not recorded is at most what two streams had in their hands.
        let in_flight = 2 * 3 * (256 << 10);
        assert!(resumed + there + in_flight >= before.min(size), "{before}: {summary}");
    }
}

/// T07.
#[test]
fn an_agent_that_sleeps_for_a_while_goes_on() {
    let ground = Ground::with_files(LARGE);
    let mut run = Run::start(ground.push(&["-p", "2", "--retries", "0"]));
    let agent = wait_for(&ground, &mut run, 4 << 20);
    signal(agent, Signal::STOP);
    std::thread::sleep(Duration::from_secs(3));
    signal(agent, Signal::CONT);
    let (status, lines) = run.end();
    assert!(status.success(), "{lines:?}");
    ground.assert_equal();
}
