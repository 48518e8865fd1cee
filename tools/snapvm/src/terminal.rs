//! Standard input as the guest's keyboard.
//!
//! On a terminal every key goes to the guest as it is typed, so the terminal is put into raw mode; keys of our own begin
//! with Ctrl-A. A pipe or file is passed on byte by byte, without keys of our own, and its end means nothing.
//!
//! Two threads, so that Ctrl-A works however little the guest reads: one reads and interprets, the other waits for room
//! in the guest's port. Between them is a queue of limited length; what a guest does not read while that is full is lost
//! on a terminal, and waited with from a pipe.

mod keys;
mod raw_mode;

use std::io::{self, IsTerminal, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use crate::server::{Host, Vm};
use crate::values::Terminal;
use keys::{Key, Keys};
use raw_mode::RawMode;

/// Bytes that wait for the guest.
const QUEUE_BYTES: usize = 4096;
/// Pause before input is offered again to a guest that does not read.
const RETRY: Duration = Duration::from_millis(10);

const HELP: &str = "
Ctrl-A x  end the machine
Ctrl-A h  this help
Ctrl-A Ctrl-A  send one Ctrl-A to the guest
";

/// The port of the guest that has our standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Serial,
    Console,
}

/// Input that is being passed on; dropping it gives the terminal back as it was.
#[derive(Debug)]
pub struct Input {
    _raw_mode: Option<RawMode>,
}

impl Input {
    /// Begins to pass standard input on to the port that is connected to it; does nothing if none is.
    ///
    /// # Errors
    /// The terminal cannot be put into raw mode.
    pub fn begin(host: &Arc<Host>, vm: &Arc<Vm>) -> io::Result<Self> {
        let description = &vm.description;
        let port = if description.serial == Terminal::Stdio {
            Port::Serial
        } else if description.console == Some(Terminal::Stdio) {
            Port::Console
        } else {
            return Ok(Self { _raw_mode: None });
        };
        let terminal = io::stdin().is_terminal();
        let raw_mode = terminal.then(RawMode::enter).transpose()?;
        let (sender, receiver) = sync_channel(QUEUE_BYTES);
        let feeding = Arc::clone(vm);
        thread::spawn(move || feed(&feeding, port, &receiver));
        let host = Arc::clone(host);
        if terminal {
            eprintln!("snapvm: keys go to the guest; Ctrl-A x ends the machine, Ctrl-A h helps");
            thread::spawn(move || read_keys(&host, &sender));
        } else {
            thread::spawn(move || read_pipe(&sender));
        }
        Ok(Self { _raw_mode: raw_mode })
    }
}

/// Interprets what is typed until standard input ends.
fn read_keys(host: &Host, guest: &SyncSender<u8>) {
    let mut keys = Keys::default();
    let mut bytes = [0; 256];
    while let Ok(count @ 1..) = io::stdin().read(&mut bytes) {
        for key in bytes[..count].iter().filter_map(|byte| keys.take(*byte)) {
            match key {
                Key::Send(byte) => match guest.try_send(byte) {
                    Ok(()) | Err(TrySendError::Full(_)) => {}
                    Err(TrySendError::Disconnected(_)) => tracing::debug!("the guest takes no input"),
                },
                Key::Help => eprint!("{HELP}"),
                Key::Quit => host.shut_down(),
            }
        }
    }
}

/// Passes all bytes on, as fast as the guest takes them.
fn read_pipe(guest: &SyncSender<u8>) {
    let mut bytes = [0; 256];
    while let Ok(count @ 1..) = io::stdin().read(&mut bytes) {
        if bytes[..count].iter().any(|byte| guest.send(*byte).is_err()) {
            return;
        }
    }
}

/// Gives the guest what is in the queue, as it finds room for it.
fn feed(vm: &Vm, port: Port, queue: &Receiver<u8>) {
    while let Ok(byte) = queue.recv() {
        loop {
            let taken = match port {
                Port::Serial => vm.machine.send_serial_input(&[byte]),
                Port::Console => vm.machine.send_console_input(&[byte]),
            };
            match taken {
                // The port's buffer is full: the guest has to read first.
                Ok(0) => thread::sleep(RETRY),
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "input is not passed on any more");
                    return;
                }
            }
        }
    }
}
