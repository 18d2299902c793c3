//! Which message may come when: the control channel's state machine, for both roles of both ends.
//!
//! [`State::handle`] takes what has happened so far and a message that just came, and gives what
//! may come next. It does nothing itself. The same table stands in `protocol-spec/02-session.md`;
//! `every_pair_is_decided` below prints it.

use thiserror::Error;

use super::measure::{Measure, Measured};
use super::message::{Message, Task};

/// What an end waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// The peer has not said who it is.
    AwaitHello { me: End },
    /// The agent waits to be told what to do.
    AwaitOpen,
    /// The client waits for the agent's consent.
    AwaitAccept { role: Role },
    /// Entries and data flow.
    Transferring { role: Role },
    /// The client waits for consent to a session that measures.
    AwaitMeasuring,
    /// The client of such a session: answers come.
    Examining,
    /// Its agent: requests come.
    Examined,
    /// The client waits for consent to a session in which one agent sends to another.
    AwaitRelaying,
    /// The client of such a session.
    Relaying,
    /// Its agent.
    Relayed,
    /// The client, on the stream on which it is told what happens there.
    Reports,
    /// As the receiver: the sender has said that it is done, and not yet whether the summaries
    /// agree.
    Ending,
    /// The sender has said that the summaries agree or not, and waits for the receiver to close.
    Closing,
    /// Nothing more may come.
    Over,
}

/// Which end of the ssh connection this is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The one that the user started; it sends data or receives it, in this role.
    Client(Role),
    /// The same in a session that measures.
    Examiner,
    /// The same in one in which the agent sends to another agent.
    Relay,
    /// The one that the client started.
    Agent,
}

/// Which way data flows, as seen from this end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    Sender,
    Receiver,
}

impl State {
    /// How an end begins.
    pub fn new(me: End) -> Self {
        Self::AwaitHello { me }
    }

    /// Advances on a message from the peer.
    ///
    /// There is no `_` arm: a new state or a new message does not compile until each of its pairs
    /// is decided (SES-4).
    #[expect(clippy::match_same_arms, reason = "the arms follow the table of the specification")]
    #[expect(clippy::too_many_lines, reason = "one table is read more easily than two")]
    pub fn handle(self, message: &Message) -> Result<Self, Unexpected> {
        use Message as M;
        Ok(match (self, message) {
            // Anybody may give up at any time, once.
            (Self::Over, M::Abort(_)) => return Err(Unexpected::new(self, message)),
            (_, M::Abort(_)) => Self::Over,

            (Self::AwaitHello { me: End::Client(role) }, M::Hello(_)) => Self::AwaitAccept { role },
            (Self::AwaitHello { me: End::Examiner }, M::Hello(_)) => Self::AwaitMeasuring,
            (Self::AwaitHello { me: End::Relay }, M::Hello(_)) => Self::AwaitRelaying,
            (Self::AwaitHello { me: End::Agent }, M::Hello(_)) => Self::AwaitOpen,
            (Self::AwaitOpen, M::Open(open)) => match open.task {
                Task::Receive { .. } => Self::Transferring { role: Role::Receiver },
                Task::Send { .. } => Self::Transferring { role: Role::Sender },
                Task::Measure { .. } => Self::Examined,
                Task::SendTo { .. } => Self::Relayed,
            },
            (Self::AwaitAccept { role }, M::Accept(_)) => Self::Transferring { role },

            // What the receiver hears from the sender.
            (
                Self::Transferring { role: Role::Receiver },
                M::Sources { .. }
                | M::Entries(_)
                | M::FileEnd { .. }
                | M::Restart { .. }
                | M::Withdraw { .. }
                | M::Complaint(_)
                | M::Owners { .. }
                | M::Listed(_)
                | M::Root { .. }
                | M::Dial(_)
                | M::NotReached(_)
                | M::Ping,
            ) => self,
            (Self::Transferring { role: Role::Receiver }, M::SourceDone(_)) => Self::Ending,
            // Sources that could not be removed after all else.
            (Self::Ending, M::Complaint(_)) => self,
            (Self::Ending, M::Finish { .. }) => Self::Over,

            // What the sender hears from the receiver.
            (
                Self::Transferring { role: Role::Sender },
                M::Verdicts(_)
                | M::Have { .. }
                | M::Written(_)
                | M::Again(_)
                | M::Outcomes(_)
                | M::Complaint(_)
                | M::Deleted(_)
                | M::Paths { .. }
                | M::Dial(_)
                | M::NotReached(_)
                | M::Ping,
            ) => self,
            // The sender's SourceDone is on its way, or it has decided to send it: what it hears
            // then is what the receiver said before it heard.
            (Self::Transferring { role: Role::Sender }, M::ReceiverDone { .. }) => Self::Closing,
            (Self::Closing, M::Closed) => Self::Over,

            // A session that measures.
            (Self::AwaitMeasuring, M::Accept(_)) => Self::Examining,
            (Self::Examining, M::Measured(Measured::Done)) => Self::Over,
            (Self::Examining, M::Measured(_) | M::NotReached(_)) => self,
            (Self::Examined, M::Measure(Measure::Done)) => Self::Over,
            (Self::Examined, M::Measure(_) | M::Dial(_)) => self,
            (Self::AwaitMeasuring | Self::Examining | Self::Examined, M::Ping) => self,

            // A session in which one agent sends to another.
            (Self::AwaitRelaying, M::Accept(_)) => Self::Relaying,
            (Self::Relaying, M::ReceiverDone { .. }) => Self::Over,
            (Self::Relayed, M::Paths { .. }) => self,
            (Self::AwaitRelaying | Self::Relaying | Self::Relayed, M::Ping) => self,
            (Self::Reports, M::Told(_)) => self,

            (Self::AwaitAccept { .. } | Self::Ending | Self::Closing, M::Ping) => self,
            (Self::Ending | Self::Closing, M::Dial(_) | M::NotReached(_)) => self,

            (
                Self::AwaitHello { .. }
                | Self::AwaitOpen
                | Self::AwaitAccept { .. }
                | Self::Transferring { .. }
                | Self::AwaitMeasuring
                | Self::Examining
                | Self::Examined
                | Self::AwaitRelaying
                | Self::Relaying
                | Self::Relayed
                | Self::Reports
                | Self::Ending
                | Self::Closing
                | Self::Over,
                M::Hello(_)
                | M::Open(_)
                | M::Accept(_)
                | M::Ping
                | M::Sources { .. }
                | M::Entries(_)
                | M::FileEnd { .. }
                | M::Restart { .. }
                | M::Withdraw { .. }
                | M::SourceDone(_)
                | M::Finish { .. }
                | M::Verdicts(_)
                | M::Have { .. }
                | M::Written(_)
                | M::Again(_)
                | M::Outcomes(_)
                | M::Complaint(_)
                | M::ReceiverDone { .. }
                | M::Closed
                | M::Owners { .. }
                | M::Listed(_)
                | M::Root { .. }
                | M::Deleted(_)
                | M::Paths { .. }
                | M::Dial(_)
                | M::NotReached(_)
                | M::Measure(_)
                | M::Measured(_)
                | M::Told(_),
            ) => return Err(Unexpected::new(self, message)),
        })
    }
}

/// The peer broke the order of the conversation. The session cannot go on.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("unexpected {message} message in state {state:?}")]
pub struct Unexpected {
    pub state: State,
    pub message: &'static str,
}

impl Unexpected {
    fn new(state: State, message: &Message) -> Self {
        Self { state, message: message.label() }
    }
}

impl Message {
    /// The message's name, as the specification spells it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Open(_) => "Open",
            Self::Accept(_) => "Accept",
            Self::Abort(_) => "Abort",
            Self::Ping => "Ping",
            Self::Sources { .. } => "Sources",
            Self::Entries(_) => "Entries",
            Self::FileEnd { .. } => "FileEnd",
            Self::Restart { .. } => "Restart",
            Self::Withdraw { .. } => "Withdraw",
            Self::SourceDone(_) => "SourceDone",
            Self::Finish { .. } => "Finish",
            Self::Verdicts(_) => "Verdicts",
            Self::Have { .. } => "Have",
            Self::Written(_) => "Written",
            Self::Again(_) => "Again",
            Self::Outcomes(_) => "Outcomes",
            Self::Complaint(_) => "Complaint",
            Self::ReceiverDone { .. } => "ReceiverDone",
            Self::Closed => "Closed",
            Self::Owners { .. } => "Owners",
            Self::Listed(_) => "Listed",
            Self::Root { .. } => "Root",
            Self::Deleted(_) => "Deleted",
            Self::Paths { .. } => "Paths",
            Self::Dial(_) => "Dial",
            Self::NotReached(_) => "NotReached",
            Self::Measure(_) => "Measure",
            Self::Measured(_) => "Measured",
            Self::Told(_) => "Told",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::fmt::Write as _;

    use super::*;
    use crate::protocol::chunk::{ChunkSize, Digest, EntryId};
    use crate::protocol::handshake::hello;
    use crate::protocol::manifest::Name;
    use crate::protocol::message::{
        Accept, Carrier, Complaint, Deletions, Dial, Durability, Entry, Failure, FailureCode, Kind,
        Metadata, Open, Options, Preserve, Resume, Secret, Select, SocketOptions, Summary, Task,
        Update, Whereabouts,
    };
    use crate::protocol::third_party::{self, Transport};

    const STATES: [State; 20] = [
        State::AwaitHello { me: End::Client(Role::Sender) },
        State::AwaitHello { me: End::Client(Role::Receiver) },
        State::AwaitHello { me: End::Examiner },
        State::AwaitHello { me: End::Relay },
        State::AwaitHello { me: End::Agent },
        State::AwaitOpen,
        State::AwaitAccept { role: Role::Sender },
        State::AwaitAccept { role: Role::Receiver },
        State::Transferring { role: Role::Sender },
        State::Transferring { role: Role::Receiver },
        State::AwaitMeasuring,
        State::Examining,
        State::Examined,
        State::AwaitRelaying,
        State::Relaying,
        State::Relayed,
        State::Reports,
        State::Ending,
        State::Closing,
        State::Over,
    ];

    fn options() -> Options {
        Options {
            chunk_size: ChunkSize::DEFAULT,
            streams: 1,
            pack_threshold: 0,
            buffer_size: 0,
            encrypt: true,
            resume: Resume::Trust,
            durability: Durability::Batch,
            dry_run: false,
            preserve: Preserve::default(),
            select: Select::default(),
            update: Update::default(),
            delete: None,
            remove_source_files: false,
            port_range: None,
            loopback: false,
            sockets: SocketOptions::default(),
            listen: crate::protocol::message::Listen::default(),
        }
    }

    fn open(task: Task) -> Message {
        let (channel_secret, job) = (Secret([0; 32]), [0; 16]);
        Message::Open(Box::new(Open { task, channel_secret, job, options: options() }))
    }

    fn peer() -> third_party::Peer {
        third_party::Peer {
            source_host: "a".into(),
            host: "b".into(),
            destination: Vec::new(),
            addresses: Vec::new(),
            transport: Transport::Auto,
            reverse: false,
            data_addresses: Vec::new(),
            listen_addresses: Vec::new(),
        }
    }

    fn accept() -> Message {
        Message::Accept(Accept {
            options: options(),
            port: 1,
            udp_port: 0,
            join: Vec::new(),
            addresses: Vec::new(),
            refusal: String::new(),
        })
    }

    fn summary() -> Summary {
        Summary { done: 0, skipped: 0, failed: 0, bytes: 0, digest: [0; 32] }
    }

    fn failure() -> Failure {
        Failure::new(FailureCode::Io, "it broke")
    }

    /// One message of every sort; of Open every task, and of requests and answers the last one too.
    fn messages() -> Vec<Message> {
        let entry = EntryId(1);
        let announced = Entry {
            id: entry,
            parent: EntryId::ROOT,
            name: Name::new(b"a").unwrap(),
            kind: Kind::Directory,
            is_linked: false,
            metadata: Metadata::default(),
        };
        vec![
            Message::Hello(hello([0; 32], Vec::new())),
            open(Task::Receive { destination: Vec::new() }),
            open(Task::Send { sources: Vec::new() }),
            open(Task::Measure { directory: Vec::new() }),
            open(Task::SendTo { sources: Vec::new(), to: Box::new(peer()) }),
            accept(),
            Message::Abort(failure()),
            Message::Ping,
            Message::Sources {
                single_file: false,
                root: None,
                whereabouts: Whereabouts::default(),
            },
            Message::Entries(Vec::new()),
            Message::FileEnd { entry, version: 0, root: Digest::default() },
            Message::Restart { entry: announced, version: 1 },
            Message::Withdraw { entry, failure: failure() },
            Message::SourceDone(summary()),
            Message::Finish { agreed: true },
            Message::Verdicts(Vec::new()),
            Message::Have { entry, first: 0, values: Vec::new() },
            Message::Written(Vec::new()),
            Message::Again(Vec::new()),
            Message::Outcomes(Vec::new()),
            Message::Complaint(Complaint::new(b"a".to_vec(), failure())),
            Message::ReceiverDone {
                summary: summary(),
                durable: true,
                deletions: Deletions::default(),
            },
            Message::Closed,
            Message::Owners { users: Vec::new(), groups: Vec::new() },
            Message::Listed(Vec::new()),
            Message::Root { entry, version: 0, root: Digest::default() },
            Message::Deleted(Vec::new()),
            Message::Paths { paths: Vec::new(), last: true },
            Message::Dial(Dial { carrier: Carrier::Tcp, port: 1, addresses: Vec::new() }),
            Message::NotReached(failure()),
            Message::Measure(Measure::Clock),
            Message::Measure(Measure::Done),
            Message::Measured(Measured::Ready),
            Message::Measured(Measured::Done),
            Message::Told(Vec::new()),
        ]
    }

    fn state_name(state: State) -> &'static str {
        match state {
            State::AwaitHello { me: End::Client(Role::Sender) } => "AwaitHello client sender",
            State::AwaitHello { me: End::Client(Role::Receiver) } => "AwaitHello client receiver",
            State::AwaitHello { me: End::Examiner } => "AwaitHello client measuring",
            State::AwaitHello { me: End::Relay } => "AwaitHello client relaying",
            State::AwaitHello { me: End::Agent } => "AwaitHello agent",
            State::AwaitOpen => "AwaitOpen",
            State::AwaitAccept { role: Role::Sender } => "AwaitAccept sender",
            State::AwaitAccept { role: Role::Receiver } => "AwaitAccept receiver",
            State::Transferring { role: Role::Sender } => "Transferring sender",
            State::Transferring { role: Role::Receiver } => "Transferring receiver",
            State::AwaitMeasuring => "AwaitAccept measuring",
            State::Examining => "Measuring client",
            State::Examined => "Measuring agent",
            State::AwaitRelaying => "AwaitAccept relaying",
            State::Relaying => "Relaying client",
            State::Relayed => "Relaying agent",
            State::Reports => "Reports",
            State::Ending => "Ending",
            State::Closing => "Closing",
            State::Over => "Over",
        }
    }

    fn message_name(message: &Message) -> &'static str {
        match message {
            Message::Open(open) if matches!(open.task, Task::Receive { .. }) => "Open Receive",
            Message::Open(open) if matches!(open.task, Task::Measure { .. }) => "Open Measure",
            Message::Open(open) if matches!(open.task, Task::SendTo { .. }) => "Open SendTo",
            Message::Open(_) => "Open Send",
            Message::Measure(Measure::Done) => "Measure Done",
            Message::Measured(Measured::Done) => "Measured Done",
            other => other.label(),
        }
    }

    /// SES-4: every pair of a state and a message is refused or is in the specification's table, and
    /// nothing else is in that.
    #[test]
    fn every_pair_is_decided() {
        let mut table = String::new();
        for state in STATES {
            let messages = messages();
            let legal = messages
                .iter()
                .filter_map(|message| Some((message_name(message), state.handle(message).ok()?)));
            for (message, next) in legal {
                let (from, to) = (state_name(state), state_name(next));
                let _ = writeln!(table, "    {from:<28} {message:<14} {to}");
            }
        }
        let spec = include_str!("../../protocol-spec/02-session.md");
        assert!(spec.contains(&table), "02-session.md, section 2.2, should have this:\n{table}");
        let first = table.lines().next().unwrap();
        let rows = spec.lines().skip_while(|line| *line != first);
        let rows = rows.take_while(|line| line.starts_with("    ")).count();
        assert_eq!(rows, table.lines().count(), "the specification has rows of its own");
    }

    /// SES-4: a refusal names the state and the message, and changes nothing.
    #[test]
    fn a_refusal_says_what_came_when() {
        let refused = State::Over.handle(&Message::Abort(failure())).unwrap_err();
        assert_eq!(refused, Unexpected { state: State::Over, message: "Abort" });
        assert_eq!(refused.to_string(), "unexpected Abort message in state Over");
        for message in messages() {
            assert!(State::Over.handle(&message).is_err());
        }
    }

    /// One end of a session without files: what it says is decided by what it has heard.
    struct Peer {
        state: State,
        /// What it says, with the state in which it may.
        script: VecDeque<(State, Message)>,
    }

    impl Peer {
        fn new(me: End, script: Vec<(State, Message)>) -> Self {
            Self { state: State::new(me), script: script.into() }
        }

        /// Says all that it can in its present state.
        fn speak(&mut self) -> Vec<Message> {
            let mut said = Vec::new();
            while self.script.front().is_some_and(|(state, _)| *state == self.state) {
                said.extend(self.script.pop_front().map(|(_, message)| message));
            }
            said
        }
    }

    /// SES-4: two ends, each with nothing but its states, get through a whole session in both
    /// directions; each message goes through its encoding.
    #[test]
    fn two_ends_come_to_an_end() {
        let sending = State::Transferring { role: Role::Sender };
        let receiving = State::Transferring { role: Role::Receiver };
        let send = |messages: &mut Vec<(State, Message)>| {
            let (before, after): (Vec<_>, Vec<_>) = self::messages()
                .into_iter()
                .filter(|message| {
                    matches!(
                        message,
                        Message::Sources { .. }
                            | Message::Entries(_)
                            | Message::FileEnd { .. }
                            | Message::Restart { .. }
                            | Message::Withdraw { .. }
                            | Message::Owners { .. }
                            | Message::Listed(_)
                            | Message::Root { .. }
                            | Message::Dial(_)
                            | Message::SourceDone(_)
                            | Message::Ping
                    )
                })
                .partition(|message| !matches!(message, Message::SourceDone(_)));
            messages.extend(before.into_iter().chain(after).map(|message| (sending, message)));
            // What could not be removed at the source is told at the very end.
            let late = Message::Complaint(Complaint::new(Vec::new(), failure()));
            messages.push((State::Closing, late));
            messages.push((State::Closing, Message::Finish { agreed: true }));
        };
        let receive = |messages: &mut Vec<(State, Message)>| {
            let mut last = Vec::new();
            for message in self::messages() {
                match message {
                    Message::Verdicts(_)
                    | Message::Have { .. }
                    | Message::Written(_)
                    | Message::Again(_)
                    | Message::Outcomes(_)
                    | Message::Complaint(_)
                    | Message::Deleted(_)
                    | Message::Paths { .. }
                    | Message::NotReached(_)
                    | Message::Ping => messages.push((receiving, message)),
                    Message::ReceiverDone { .. } => last.push((State::Ending, message)),
                    Message::Closed => last.push((State::Over, message)),
                    _ => {}
                }
            }
            messages.extend(last);
        };
        for role in [Role::Sender, Role::Receiver] {
            let me = End::Client(role);
            let task = match role {
                Role::Sender => Task::Receive { destination: b"/".to_vec() },
                Role::Receiver => Task::Send { sources: vec![b"/".to_vec()] },
            };
            let greeting = Message::Hello(hello([1; 32], vec![1]));
            let mut client = vec![
                (State::AwaitAccept { role }, greeting.clone()),
                (State::AwaitAccept { role }, open(task)),
            ];
            let mut agent = vec![(State::new(End::Agent), greeting)];
            let agents = if role == Role::Sender { receiving } else { sending };
            agent.push((agents, accept()));
            match role {
                Role::Sender => (send(&mut client), receive(&mut agent)),
                Role::Receiver => (receive(&mut client), send(&mut agent)),
            };
            let mut ends = [Peer::new(me, client), Peer::new(End::Agent, agent)];
            let mut heard = [VecDeque::new(), VecDeque::new()];
            for _ in 0..50 {
                for (speaker, hearer) in [(0, 1), (1, 0)] {
                    for message in ends[speaker].speak() {
                        heard[hearer].push_back(message.encode().unwrap());
                    }
                }
                for (end, heard) in ends.iter_mut().zip(&mut heard) {
                    let Some(bytes) = heard.pop_front() else { continue };
                    let message = Message::decode(&bytes[4..]).unwrap();
                    end.state = end.state.handle(&message).unwrap();
                }
            }
            for end in ends {
                assert_eq!(end.state, State::Over, "{role:?}");
                assert!(end.script.is_empty(), "{role:?}: not all was said");
            }
        }
    }
}
