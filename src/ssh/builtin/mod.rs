//! An ssh client without an ssh program. What starts it sees what it would see of a child process: a
//! byte stream, what ssh complains of, and ssh's exit codes.
//!
//! - `settings`, `config`: what ssh's configuration says about a host.
//! - `connect`: straight, through jump hosts, or through a command.
//! - `server`, `known_hosts`, `pattern`: whether the server is who it should be.
//! - `auth`, `keys`, `terminal`: logging in.

mod auth;
mod config;
mod connect;
mod error;
mod keys;
mod known_hosts;
mod pattern;
mod server;
mod settings;
mod terminal;

use std::sync::PoisonError;

use russh::{ChannelMsg, Disconnect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::process::{Complaints, Ends, Process};
use super::{Login, Resolved, Started};
use connect::{Connection, connect};
use error::Error;
use server::Farewell;
use settings::Settings;

/// Logs in and starts something. In a batch, nobody is asked anything.
pub fn start(login: Login, started: Started<'_>, is_batch: bool) -> Process {
    let wanted = match started {
        Started::Command(line) => Wanted::Command(line.to_owned()),
        Started::Subsystem(name) => Wanted::Subsystem(name.to_owned()),
    };
    Process::start_task(|mut ends| async move {
        match run(&login, wanted, is_batch, &mut ends).await {
            Ok(code) => code,
            Err(error) => {
                ends.complaints.add(format!("{error}\n").as_bytes());
                LOST
            }
        }
    })
}

/// What is to be started, for a task.
enum Wanted {
    Command(String),
    Subsystem(String),
}

/// What a host's settings make of its name, where that means something here.
pub async fn resolved_host(login: &Login) -> Option<Resolved> {
    let settings = Settings::of(login).await.ok()?;
    let is_proxied = !settings.jumps().is_empty() || !matches!(settings.proxy_command(), Ok(None));
    (!is_proxied).then(|| Resolved {
        host: settings.host(),
        user: Some(settings.user()),
        port: Some(settings.port()),
        alias: settings.value("hostkeyalias").map(str::to_owned),
    })
}

async fn run(login: &Login, wanted: Wanted, is_batch: bool, ends: &mut Ends) -> Result<u8, Error> {
    let connecting = connect(login, is_batch, &ends.complaints, 0);
    let mut early = Vec::new();
    let connection = tokio::select! {
        connection = connecting => connection?,
        // Nobody waits for it any more: a prompt that is on the screen goes too.
        () = caller_gone(&mut ends.input, &mut early) => return Ok(LOST),
    };
    let code = carry(&connection, wanted, early, ends).await?;
    let farewell = connection.handle.disconnect(Disconnect::ByApplication, "", "");
    let _ = farewell.await;
    Ok(code)
}

/// Waits until the caller has dropped its end, and keeps what it wrote before.
async fn caller_gone(input: &mut DuplexStream, early: &mut Vec<u8>) {
    while early.len() < PIECE_LEN {
        if let Ok(0) | Err(_) = input.read_buf(early).await {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Carries a command's streams until it has ended.
async fn carry(
    connection: &Connection,
    wanted: Wanted,
    early: Vec<u8>,
    ends: &mut Ends,
) -> Result<u8, Error> {
    let channel = connection.handle.channel_open_session().await?;
    match wanted {
        Wanted::Command(line) => channel.exec(true, line).await?,
        Wanted::Subsystem(name) => channel.request_subsystem(true, name).await?,
    }
    let (mut from, to) = channel.split();
    let Ends { input, output, complaints } = ends;
    let sending = async {
        if !early.is_empty() {
            to.data_bytes(early).await?;
        }
        loop {
            let mut piece = Vec::with_capacity(PIECE_LEN);
            match input.read_buf(&mut piece).await {
                Ok(1..) => to.data_bytes(piece).await?,
                Ok(0) | Err(_) => return to.eof().await,
            }
        }
    };
    let receiving = async {
        let mut code = None;
        while let Some(message) = from.wait().await {
            match message {
                // Whoever does not read any more does not want it.
                ChannelMsg::Data { data } => drop(output.write_all(&data).await),
                ChannelMsg::ExtendedData { data, .. } => complaints.add(&data),
                ChannelMsg::Eof => drop(output.shutdown().await),
                ChannelMsg::ExitStatus { exit_status } => {
                    code = Some(u8::try_from(exit_status).unwrap_or(LOST));
                }
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    tell(complaints, &format!("the command was ended by {signal_name:?}"));
                    code = Some(LOST);
                }
                ChannelMsg::Failure => {
                    tell(complaints, "the server does not start what was asked for");
                    code = Some(LOST);
                    break;
                }
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        code
    };
    let mut receiving = std::pin::pin!(receiving);
    let code = tokio::select! {
        code = &mut receiving => code,
        // What cannot be sent any more was not wanted; how the command ended is told last.
        _ = sending => receiving.await,
    };
    code.ok_or_else(|| lost(&connection.settings, &connection.farewell))
}

fn tell(complaints: &Complaints, text: &str) {
    complaints.add(format!("{text}\n").as_bytes());
}

/// A connection that ended, and what was said about it.
fn lost(settings: &Settings, farewell: &Farewell) -> Error {
    let farewell = farewell.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let cause = farewell.unwrap_or_else(|| "the server closed the connection".to_owned());
    Error::Lost { host: settings.host(), cause }
}

/// ssh's exit code for whatever is not the command's own.
const LOST: u8 = 255;

/// How much is taken at once of what the command is to read, in bytes.
const PIECE_LEN: usize = 256 << 10;
