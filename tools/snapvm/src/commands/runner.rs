//! Running a machine in the foreground: its API, its serial input, and the three ways in which it ends.
//!
//! It ends when the guest stops, when a client asks for it, or when SIGINT or SIGTERM arrives. A snapshot under way
//! when the guest stops is finished first: memory still is as it was at the capture point. On a signal or a request
//! it is given up.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use vmm::{Backing, SerialOutput, StopReason};

use crate::cli::{self, MachineArgs};
use crate::outcome::Outcome;
use crate::server::{ApiSocket, Vm, serve};
use crate::values::Serial;

/// Threads that serve the API; nothing that blocks runs on them.
const API_THREADS: usize = 2;
/// How long clients may take to read the last answers when the machine has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Pause before serial input is offered again to a guest that does not read.
const INPUT_RETRY: Duration = Duration::from_millis(10);

/// Creates the control socket, if one is wanted.
pub fn bind(args: &MachineArgs) -> anyhow::Result<Option<ApiSocket>> {
    args.api_sock.as_deref().map(ApiSocket::bind).transpose()
}

/// What the command line calls a serial port, in the machine's words.
pub fn serial_output(serial: &Serial) -> SerialOutput {
    match serial {
        Serial::Stdio => SerialOutput::Stdio,
        Serial::File(path) => SerialOutput::File(path.clone()),
        Serial::Null => SerialOutput::Null,
    }
}

/// What the command line calls a backing, in the machine's words.
pub fn backing(backing: cli::Backing) -> Backing {
    match backing {
        cli::Backing::Anonymous => Backing::Anonymous,
        cli::Backing::Memfd => Backing::Memfd,
    }
}

/// Serves the machine until it ends.
pub fn run_to_end(vm: Vm, socket: Option<ApiSocket>, args: &MachineArgs) -> anyhow::Result<Outcome> {
    let vm = Arc::new(vm);
    if args.serial == Serial::Stdio {
        forward_input(&vm);
    }
    if let Some(path) = &args.api_sock {
        eprintln!(
            "snapvm: the machine is up; control it by --api-sock {}",
            path.display()
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(API_THREADS)
        .enable_all()
        .build()
        .context("starting the event loop")?;
    let reason = runtime.block_on(serve_to_end(&vm, socket))?;
    conclude(&reason)
}

/// Waits for the end of the machine while its API is served; returns why it ended.
async fn serve_to_end(vm: &Arc<Vm>, socket: Option<ApiSocket>) -> anyhow::Result<StopReason> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let api = socket.map(|socket| tokio::spawn(serve(socket, Arc::clone(vm))));
    let mut ended = watch_machine(vm);
    let reason = loop {
        tokio::select! {
            reason = &mut ended => break reason.context("the thread that watches the machine is gone")?,
            _ = interrupt.recv() => tokio::task::block_in_place(|| vm.shut_down()),
            _ = terminate.recv() => tokio::task::block_in_place(|| vm.shut_down()),
        }
    };
    vm.shut_down();
    if let Some(api) = api {
        // Answers under way are finished; a client that keeps its connection open is not waited for long.
        match tokio::time::timeout(LAST_ANSWERS, api).await {
            Ok(served) => served.context("the API thread panicked")??,
            Err(_) => tracing::warn!("a client of the API did not hang up"),
        }
    }
    Ok(reason)
}

/// Tells when the machine has stopped and no snapshot of it is being written any more.
fn watch_machine(vm: &Arc<Vm>) -> oneshot::Receiver<StopReason> {
    let (sender, receiver) = oneshot::channel();
    let vm = Arc::clone(vm);
    thread::spawn(move || {
        let reason = vm.machine.wait();
        vm.jobs.wait_until_idle();
        // Nobody waits only when the process ends anyway.
        let _ = sender.send(reason);
    });
    receiver
}

/// Passes standard input on to the guest's serial port, until it ends.
fn forward_input(vm: &Arc<Vm>) {
    let vm = Arc::clone(vm);
    thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = io::stdin().read(&mut bytes) {
            let mut rest = &bytes[..count];
            while !rest.is_empty() {
                match vm.machine.send_serial_input(rest) {
                    // The port's buffer is full: the guest has to read first.
                    Ok(0) => thread::sleep(INPUT_RETRY),
                    Ok(taken) => rest = &rest[taken..],
                    Err(error) => {
                        tracing::warn!(%error, "serial input is not passed on any more");
                        return;
                    }
                }
            }
        }
    });
}

fn conclude(reason: &StopReason) -> anyhow::Result<Outcome> {
    match reason {
        StopReason::Requested => Ok(Outcome::Good),
        StopReason::Reset | StopReason::SystemEvent { .. } | StopReason::DebugExit { code: 0 } => {
            eprintln!("snapvm: the guest ended: {reason}");
            Ok(Outcome::Good)
        }
        StopReason::DebugExit { .. } => {
            eprintln!("snapvm: the guest ended: {reason}");
            Ok(Outcome::No)
        }
        _ => bail!("the guest cannot go on: {reason}"),
    }
}
