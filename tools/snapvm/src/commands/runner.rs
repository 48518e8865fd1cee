//! Running a machine in the foreground: its API, its input, and the three ways in which it ends.
//!
//! It ends when the guest stops, when a client or the terminal asks for it, or when SIGINT or SIGTERM arrives, on a
//! terminal SIGHUP or SIGQUIT as well. A snapshot under way when the guest stops is finished first: memory still is as
//! it was at the capture point. On a signal or a request it is given up.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use vmm::StopReason;

use crate::outcome::Outcome;
use crate::server::{ApiSocket, Host, Vm, serve};
use crate::terminal::Input;

/// Threads that serve the API; nothing that blocks runs on them.
const API_THREADS: usize = 2;
/// How long clients may take to read the last answers when the machine has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Creates the control socket, if one is wanted.
pub fn bind(api_sock: Option<&Path>) -> anyhow::Result<Option<ApiSocket>> {
    api_sock.map(ApiSocket::bind).transpose()
}

/// Says that the machine is up, and where it is controlled.
pub fn announce(api_sock: &Path) {
    eprintln!(
        "snapvm: the machine is up; control it by --api-sock {}",
        api_sock.display()
    );
}

/// Serves the machine, or first the room for one, until its end.
pub fn run_to_end(host: &Arc<Host>, socket: Option<ApiSocket>) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(API_THREADS)
        .enable_all()
        .build()
        .context("starting the event loop")?;
    let ended = runtime.block_on(serve_to_end(host, socket));
    if let Some(vm) = host.vm() {
        vm.close_disks()?;
    }
    match ended? {
        Some(reason) => conclude(&reason),
        None => Ok(Outcome::Good),
    }
}

/// Waits for the end of the machine while its API is served; returns why it ended, if there was one.
async fn serve_to_end(host: &Arc<Host>, socket: Option<ApiSocket>) -> anyhow::Result<Option<StopReason>> {
    shut_down_on_signals(host)?;
    let api = socket.map(|socket| tokio::spawn(serve(socket, Arc::clone(host))));
    let reason = match host.wait_for_vm().await {
        None => None,
        Some(vm) => {
            let _input = Input::begin(host, &vm).context("setting up the terminal")?;
            heed_disks(&vm);
            let ended = watch_machine(&vm).await;
            Some(ended.context("the thread that watches the machine is gone")?)
        }
    };
    host.shut_down();
    if let Some(api) = api {
        // Answers under way are finished; a client that keeps its connection open is not waited for long.
        match tokio::time::timeout(LAST_ANSWERS, api).await {
            Ok(served) => served.context("the API thread panicked")??,
            Err(_) => tracing::warn!("a client of the API did not hang up"),
        }
    }
    Ok(reason)
}

/// Ends everything in an orderly way when someone asks for it by a signal.
fn shut_down_on_signals(host: &Arc<Host>) -> anyhow::Result<()> {
    let mut signals = vec![
        (SignalKind::interrupt(), "SIGINT"),
        (SignalKind::terminate(), "SIGTERM"),
    ];
    // These would leave a terminal in raw mode. Elsewhere they stay as they are: nohup ignores SIGHUP.
    if io::stdin().is_terminal() {
        signals.push((SignalKind::hangup(), "SIGHUP"));
        signals.push((SignalKind::quit(), "SIGQUIT"));
    }
    for (kind, name) in signals {
        let mut arriving = signal(kind).with_context(|| format!("watching for {name}"))?;
        let host = Arc::clone(host);
        tokio::spawn(async move {
            while arriving.recv().await.is_some() {
                tokio::task::block_in_place(|| host.shut_down());
            }
        });
    }
    Ok(())
}

/// Pauses the machine whenever one of its disks is to wait for room on the host.
fn heed_disks(vm: &Arc<Vm>) {
    let vm = Arc::clone(vm);
    thread::spawn(move || vm.heed_disks());
}

/// Tells when the machine has stopped and no snapshot of it is being written any more.
fn watch_machine(vm: &Arc<Vm>) -> oneshot::Receiver<StopReason> {
    let (sender, receiver) = oneshot::channel();
    let vm = Arc::clone(vm);
    thread::spawn(move || {
        let reason = vm.machine.wait();
        vm.jobs.wait_until_idle();
        // Nobody will use what it would save; what was copied stays copied.
        vm.flattens.cancel();
        vm.flattens.wait_until_idle();
        // Nobody waits only when the process ends anyway.
        let _ = sender.send(reason);
    });
    receiver
}

fn conclude(reason: &StopReason) -> anyhow::Result<Outcome> {
    match reason {
        StopReason::Requested => Ok(Outcome::Good),
        StopReason::Reset
        | StopReason::PowerOff
        | StopReason::SystemEvent { .. }
        | StopReason::DebugExit { code: 0 } => {
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
