//! A person at a terminal: what is asked there, and what is answered.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};
use std::thread;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Runs a command, which makes its standard input its terminal, and answers each prompt in turn when
/// it is there. Returns what the command wrote to its own streams, and all that the terminal showed.
pub fn converse(mut command: Command, answers: &[(&str, &str)]) -> (Output, String) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let terminal = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    command.stdin(terminal).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    let answers: Vec<_> = answers.iter().map(|(a, b)| ((*a).to_owned(), keys(b))).collect();
    let person = thread::spawn(move || answer(master, answers));
    let output = child.wait_with_output().unwrap();
    (output, person.join().unwrap())
}

/// What is typed for an answer; Ctrl-C needs no Enter.
fn keys(answer: &str) -> String {
    if answer == "\x03" { answer.to_owned() } else { format!("{answer}\n") }
}

fn answer(master: OwnedFd, answers: Vec<(String, String)>) -> String {
    let (mut master, mut screen, mut seen) = (File::from(master), Vec::new(), 0);
    let mut answers = answers.into_iter().peekable();
    let mut piece = [0; 1024];
    // The end of a terminal that nobody has any more is an error.
    while let Ok(len @ 1..) = master.read(&mut piece) {
        screen.extend_from_slice(&piece[..len]);
        let text = String::from_utf8_lossy(&screen[seen..]).into_owned();
        if let Some((_, line)) = answers.next_if(|(prompt, _)| text.contains(prompt.as_str())) {
            seen = screen.len();
            master.write_all(line.as_bytes()).unwrap();
        }
    }
    let modes = tcgetattr(&master).unwrap().local_modes;
    assert!(modes.contains(LocalModes::ECHO), "the terminal still hides what is typed");
    String::from_utf8_lossy(&screen).into_owned()
}
