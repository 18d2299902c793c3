//! Which message may come when: the control channel's state machine, for both roles of both ends.
//!
//! [`State::handle`] takes what has happened so far and a message that just came, and gives what
//! may come next. It does nothing itself. The same table stands in `protocol-spec/02-session.md`;
//! `every_pair_is_decided` below prints it.

use thiserror::Error;

use super::message::Message;

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
    pub fn handle(self, message: &Message) -> Result<Self, Unexpected> {
        use Message as M;
        Ok(match (self, message) {
            // Anybody may give up at any time, once.
            (Self::Over, M::Abort(_)) => return Err(Unexpected::new(self, message)),
            (_, M::Abort(_)) => Self::Over,

            (Self::AwaitHello { me: End::Client(role) }, M::Hello(_)) => Self::AwaitAccept { role },
            (Self::AwaitHello { me: End::Agent }, M::Hello(_)) => Self::AwaitOpen,
            (Self::AwaitOpen, M::Open(open)) => Self::Transferring {
                role: match open.task {
                    super::message::Task::Receive { .. } => Role::Receiver,
                    super::message::Task::Send { .. } => Role::Sender,
                },
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
                | M::Ping,
            ) => self,
            (Self::Transferring { role: Role::Receiver }, M::SourceDone(_)) => Self::Ending,
            (Self::Ending, M::Finish { .. }) => Self::Over,

            // What the sender hears from the receiver.
            (
                Self::Transferring { role: Role::Sender },
                M::Verdicts(_)
                | M::Have { .. }
                | M::Written(_)
                | M::Again(_)
                | M::Outcomes(_)
                | M::Complaint { .. }
                | M::Ping,
            ) => self,
            // The sender's SourceDone is on its way, or it has decided to send it: what it hears
            // then is what the receiver said before it heard.
            (Self::Transferring { role: Role::Sender }, M::ReceiverDone { .. }) => Self::Closing,
            (Self::Closing, M::Closed) => Self::Over,

            (Self::AwaitAccept { .. } | Self::Ending | Self::Closing, M::Ping) => self,

            (
                Self::AwaitHello { .. }
                | Self::AwaitOpen
                | Self::AwaitAccept { .. }
                | Self::Transferring { .. }
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
                | M::Complaint { .. }
                | M::ReceiverDone { .. }
                | M::Closed,
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
            Self::Complaint { .. } => "Complaint",
            Self::ReceiverDone { .. } => "ReceiverDone",
            Self::Closed => "Closed",
        }
    }
}
