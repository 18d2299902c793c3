//! The agent at the source: the receiving agent's client, over a stream that the real client carries.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, split};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::listen;
use super::reports::{Gate, Paced, tell};
use crate::engine::agent::paths;
use crate::engine::client::{LAST_WORDS, LocalEnd, Plan, Relayed, Session, SessionEnd};
use crate::engine::control::{Aside, ControlError, Inbox, Outbox, Pulse, outbox_with};
use crate::engine::endpoint::AnySource;
use crate::engine::event::Progress;
use crate::engine::job::{Host, Reach, Transport};
use crate::engine::launch::{AGENT_SILENCE, AgentGreeting, check_version};
use crate::engine::session::{Observer, SessionError};
use crate::protocol::message::{Accept, Failure, FailureCode, Message, Options, Task};
use crate::protocol::session::{End, Role};
use crate::protocol::third_party::{Peer, STREAMS, Transport as Allowed};
use crate::protocol::tunnel;
use crate::storage::local::LocalSource;
use crate::transport::tunnel::{Tunnel, TunnelStream};

/// What the client wants to be sent where.
#[derive(Debug)]
pub struct Errand {
    pub sources: Vec<PathBuf>,
    pub to: Peer,
    pub job: [u8; 16],
    pub options: Options,
    /// Where this host was reached, as text.
    pub addresses: Vec<String>,
    /// On which ports this host listens, if the other one dials.
    pub ports: Option<(u16, u16)>,
}

/// Serves a client that watches.
pub async fn run<R: AsyncRead + Unpin>(
    errand: Errand,
    tunnel: Tunnel,
    mut inbox: Inbox<R>,
    outbox: Outbox,
) -> Result<(), SessionError> {
    tunnel.allow(STREAMS.into(), tunnel::window(STREAMS));
    let (words, _heard) = flume::bounded(1);
    inbox.set_aside(Aside { tunnel: tunnel.clone(), words });
    let options = errand.options.clone();
    let accept = Message::Accept(Accept {
        options: options.clone(),
        port: 0,
        udp_port: 0,
        join: Vec::new(),
        addresses: errand.addresses.clone(),
        refusal: String::new(),
    });
    let open = |paths| {
        LocalSource::open(&errand.sources, &options, paths).map_err(|error| {
            SessionError::Local(of_host(&errand.to.source_host, &error.to_failure()))
        })
    };
    let source = if options.select.has_paths {
        outbox.say(&accept)?;
        open(Some(paths(&mut inbox).await?))?
    } else {
        let source = open(None)?;
        outbox.say(&accept)?;
        source
    };
    let (stop, stopped) = oneshot::channel();
    let mut sending = Box::pin(send(errand, source, tunnel, stopped));
    let end = tokio::select! {
        end = &mut sending => end,
        error = listen(&mut inbox) => {
            let _ = stop.send(());
            let _ = timeout(CLOSING, &mut sending).await;
            return Err(error);
        }
    };
    // To this peer, what failed between the two agents is said whole, tried addresses included.
    if let Err(SessionError::Local(failure)) = end {
        outbox.say(&Message::Abort(failure.clone()))?;
        return Err(ControlError::Aborted(failure).into());
    }
    let SessionEnd { totals, durable, deletions } = end?;
    outbox.say(&Message::ReceiverDone { summary: totals.into(), durable, deletions })?;
    Ok(())
}

/// The session with the other agent, and what is told of it.
async fn send(
    errand: Errand,
    source: LocalSource,
    tunnel: Tunnel,
    stopped: oneshot::Receiver<()>,
) -> Result<SessionEnd, SessionError> {
    let streams = async { (tunnel.accept().await, tunnel.accept().await) };
    let Ok((control, reports)) = timeout(STREAMS_PATIENCE, streams).await else {
        let text = "the client did not connect the receiving host";
        return Err(SessionError::local(FailureCode::Disconnected, text));
    };
    let names = (errand.to.source_host.clone(), errand.to.host.clone());
    let (progress, gate, pulse) = (Arc::new(Progress::default()), Gate::default(), Pulse::new());
    let (events, happened) = flume::unbounded();
    let (end, ended) = oneshot::channel();
    let observer = Observer::new(Arc::clone(&progress), Some(events));
    let playing = async {
        let playing = play(errand, source, control, &gate, pulse.clone(), observer, stopped);
        let result = Box::pin(playing).await;
        let _ = end.send(());
        Ok(result)
    };
    let telling = tell(happened, &progress, reports, &gate, &pulse, ended);
    // What cannot be told is the end: without its reports, nobody knows what became of it.
    let (result, ()) = tokio::try_join!(playing, telling)?;
    result.map_err(|error| SessionError::Local(explain(&names, &error)))
}

/// Is the other agent's client, from its Hello to the end.
async fn play(
    errand: Errand,
    source: LocalSource,
    control: TunnelStream,
    gate: &Gate,
    pulse: Pulse,
    observer: Observer,
    stopped: oneshot::Receiver<()>,
) -> Result<SessionEnd, SessionError> {
    let (reader, writer) = split(control);
    let me = End::Client(Role::Sender);
    let mut inbox = Inbox::new(Paced::new(reader, gate.clone()), me, AGENT_SILENCE, pulse);
    let tunnel = Tunnel::default();
    let (outbox, writing) = outbox_with(writer, Some(tunnel.clone()));
    let (Message::Hello(hello), encoded) = inbox.next_encoded().await? else {
        return Err(SessionError::violation("the agent did not introduce itself"));
    };
    check_version(&hello)?;
    let mut writer = JoinSet::new();
    writer.spawn(writing);
    let addresses = errand.to.addresses.clone();
    let plan = plan(errand, source);
    let (further, established) = (None, false);
    let mut session = Session { plan, inbox, outbox, further, tunnel, observer, established };
    let stopped = async {
        let _ = stopped.await;
    };
    let greeting = AgentGreeting { hello, encoded };
    let result = Box::pin(session.play(greeting, &addresses, stopped)).await;
    let Session { inbox, outbox, .. } = session;
    drop(outbox);
    let _ = timeout(LAST_WORDS, writer.join_next()).await;
    drop(inbox);
    result
}

fn plan(errand: Errand, source: LocalSource) -> Plan {
    let Errand { to, job, options, addresses, ports, .. } = errand;
    let reach = Reach {
        transport: match to.transport {
            Allowed::Auto => Transport::Auto,
            Allowed::Tcp => Transport::Tcp,
            Allowed::Quic => Transport::Quic,
            Allowed::Tunnel => Transport::Ssh,
        },
        reverse: to.reverse,
        data_addresses: to.data_addresses,
        listen_addresses: to.listen_addresses,
        ssh_connections: Some(1),
    };
    Plan {
        host: Some(Host { name: to.host, user: None, port: None }),
        local: LocalEnd::Source(AnySource::Local(source)),
        task: Task::Receive { destination: to.destination },
        job,
        options,
        paths: None,
        reach,
        relayed: Some(Relayed { name: to.source_host, addresses, ports }),
    }
}

/// What went wrong between the source's host and the other one, so that it names one of them (THIRD-6).
fn explain((own, other): &(String, String), error: &SessionError) -> Failure {
    let control = match error {
        SessionError::Local(failure) | SessionError::Mistrusted(failure) => {
            return of_host(own, failure);
        }
        SessionError::Control(control) => control,
    };
    match &**control {
        ControlError::Aborted(failure) => of_host(other, failure),
        cause @ (ControlError::Ended | ControlError::Silent(_) | ControlError::Read(_)) => {
            Failure::new(FailureCode::Disconnected, format!("{other}: {cause}"))
        }
        cause => {
            let text = format!("{other}: it and {own} do not understand each other: {cause}");
            Failure::new(FailureCode::Violation, text)
        }
    }
}

/// The same failure, with the name of the host that it is of.
pub fn of_host(host: &str, failure: &Failure) -> Failure {
    Failure::new(failure.code, format!("{host}: {}", failure.text()))
}

/// How long the client may take to connect the other agent: a person may have to log in there.
const STREAMS_PATIENCE: Duration = Duration::from_mins(10);

/// How long a session that is given up may take to tell the other agent.
const CLOSING: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;
    use crate::engine::job::TransferConfig;
    use crate::protocol::handshake::hello;
    use crate::protocol::message::{Open, Secret};

    /// What a client may do to the agent once it has its two streams.
    #[derive(Clone, Copy, Debug)]
    enum Deed {
        OpensAThird,
        SendsNoise,
        EndsTheOther,
        TakesNoReports,
        SaysPaths,
        GivesUp,
    }

    fn peer() -> Peer {
        Peer {
            source_host: "dtn1".to_owned(),
            host: "dtn2".to_owned(),
            destination: b"x".to_vec(),
            addresses: Vec::new(),
            transport: Allowed::Tunnel,
            reverse: false,
            data_addresses: Vec::new(),
            listen_addresses: Vec::new(),
        }
    }

    /// How the agent's session ends after a deed.
    async fn after(deed: Deed) -> SessionError {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a"), "content").unwrap();
        let options = TransferConfig::default().to_options(false);
        let (near, far) = duplex(1 << 16);
        let (far_reader, far_writer) = split(far);
        let silence = Duration::from_mins(1);
        let mut inbox = Inbox::new(far_reader, End::Agent, silence, Pulse::new());
        let agents = Tunnel::default();
        let (outbox, agent_writes) = outbox_with(far_writer, Some(agents.clone()));
        let (reader, writer) = split(near);
        let tunnel = Tunnel::default();
        let (says, client_writes) = outbox_with(writer, Some(tunnel.clone()));
        tunnel.allow(0, tunnel::window(STREAMS));
        let sources = vec![temp.path().join("a")];
        let (job, task) = ([0; 16], Task::SendTo { sources: vec![], to: Box::new(peer()) });
        let open = Open { task, channel_secret: Secret([0; 32]), job, options: options.clone() };
        says.say(&Message::Hello(hello([0; 32], Vec::new()))).unwrap();
        says.say(&Message::Open(Box::new(open))).unwrap();
        let client = async {
            let mut heard = Inbox::new(reader, End::Relay, silence, Pulse::new());
            let (words, _heard) = flume::bounded(1);
            heard.set_aside(Aside { tunnel: tunnel.clone(), words });
            let (mut control, reports) = (tunnel.open(), tunnel.open());
            let greeting = Message::Hello(hello([1; 32], Vec::new())).encode().unwrap();
            let mut reports = Some(reports);
            let mut more = None;
            match deed {
                Deed::OpensAThird => more = Some(tunnel.open()),
                Deed::SendsNoise => control.write_all(&[7; 100]).await.unwrap(),
                Deed::EndsTheOther => {
                    control.write_all(&greeting).await.unwrap();
                    control.shutdown().await.unwrap();
                }
                Deed::TakesNoReports => reports = None,
                Deed::SaysPaths => {
                    says.say(&Message::Paths { paths: Vec::new(), last: true }).unwrap();
                }
                Deed::GivesUp => {
                    let failure = Failure::new(FailureCode::Interrupted, "enough");
                    says.say(&Message::Abort(failure)).unwrap();
                }
            }
            while heard.next().await.is_ok() {}
            drop((control, reports, more));
        };
        let agent = async {
            outbox.say(&Message::Hello(hello([0; 32], Vec::new()))).unwrap();
            inbox.next().await.unwrap();
            inbox.next().await.unwrap();
            let (to, addresses, ports) = (peer(), Vec::new(), None);
            let errand = Errand { sources, to, job, options, addresses, ports };
            run(errand, agents, inbox, outbox).await
        };
        // Nobody waits for whoever writes.
        let others = async {
            let _ = tokio::join!(client, client_writes, agent_writes);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = agent => end.unwrap_err(),
            () = others => unreachable!(),
        }
    }

    #[track_caller]
    fn assert_told(error: &SessionError, code: FailureCode, text: &str) {
        let told = match error {
            // It has been told already.
            SessionError::Control(told) => match &**told {
                ControlError::Aborted(failure) => failure.clone(),
                _ => error.to_tell().unwrap(),
            },
            SessionError::Local(failure) | SessionError::Mistrusted(failure) => {
                panic!("it is not told whole: {failure}")
            }
        };
        assert!(told.code == code && told.text().contains(text), "{told:?}");
    }

    /// THIRD-2, THIRD-6, THIRD-7: whatever the client or the other agent does, the session ends, and the
    /// client is told which host it was.
    #[tokio::test(start_paused = true)]
    async fn whatever_a_client_does_is_decided() {
        let violation = FailureCode::Violation;
        let after = |deed| Box::pin(after(deed));
        assert_told(&after(Deed::OpensAThird).await, violation, "more streams are open");
        assert_told(&after(Deed::SendsNoise).await, violation, "dtn2: it and dtn1 do not");
        let error = after(Deed::EndsTheOther).await;
        assert_told(&error, FailureCode::Disconnected, "dtn2: the connection ended");
        assert_told(&after(Deed::SaysPaths).await, violation, "Paths");
        let error = after(Deed::GivesUp).await;
        assert!(error.to_tell().is_none(), "no answer to Abort: {error}");
        let error = after(Deed::TakesNoReports).await;
        assert!(matches!(error, SessionError::Control(_)), "{error}");
    }

    /// THIRD-6.
    #[test]
    fn failures_name_the_host_that_they_are_of() {
        let names = ("dtn1".to_owned(), "dtn2".to_owned());
        let failure = || Failure::new(FailureCode::Startup, "it is locked");
        let text = |error: SessionError| explain(&names, &error).text().to_owned();
        assert_eq!(text(SessionError::Local(failure())), "dtn1: it is locked");
        assert_eq!(text(ControlError::Aborted(failure()).into()), "dtn2: it is locked");
        let lost = explain(&names, &ControlError::Ended.into());
        assert_eq!(lost.code, FailureCode::Disconnected);
        assert_eq!(explain(&names, &SessionError::violation("x")).code, FailureCode::Violation);
    }
}
