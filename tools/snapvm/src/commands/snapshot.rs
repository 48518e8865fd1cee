//! `snapvm snapshot`: asks a running machine for a snapshot, watches it, and says what it cost.
//!
//! The machine writes the file; this process only watches, so killing it does no harm. An interrupt gives the
//! snapshot up and waits for the machine to have cleaned up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use hyper::Method;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{SnapshotRequest, SnapshotState, SnapshotStatus, route};
use crate::cli::SnapshotArgs;
use crate::client::{Client, block_on};
use crate::outcome::Outcome;
use crate::output::{Facts, print_json};
use crate::progress::SnapshotBar;
use crate::report;
use crate::values::{Assignment, by_id};

/// How long the machine is left alone before it is asked how far it is: at first, and at most. The interval doubles
/// from question to question, so that short snapshots are known at once and long ones are not slowed down.
const FIRST_INTERVAL: Duration = Duration::from_millis(5);
const LAST_INTERVAL: Duration = Duration::from_millis(200);

/// `snapvm snapshot`.
pub fn run(args: &SnapshotArgs) -> anyhow::Result<Outcome> {
    let request = request(args)?;
    request.validate().map_err(anyhow::Error::msg)?;
    let ended = block_on(follow(&Client::new(&args.api_sock), &request, !args.json))?;
    if args.json {
        print_json(&ended)?;
    } else if ended.state == SnapshotState::Done {
        let mut facts = Facts::default();
        report::add_status(&mut facts, &ended);
        facts.print()?;
    }
    match (ended.state, ended.error) {
        (SnapshotState::Done, _) => Ok(Outcome::Good),
        (SnapshotState::Cancelled | SnapshotState::Abandoned, error) => {
            if let Some(error) = error {
                eprintln!("snapvm: no snapshot: {error}; the guest runs on");
            }
            Ok(Outcome::No)
        }
        (_, Some(error)) => Err(error.into()),
        (_, None) => anyhow::bail!("the snapshot ended without a reason"),
    }
}

fn request(args: &SnapshotArgs) -> anyhow::Result<SnapshotRequest> {
    Ok(SnapshotRequest {
        path: absolute(&args.file)?,
        mode: args.mode,
        codec: args.codec,
        level: args.level,
        chunk_bytes: args.chunk,
        on_pressure: args.on_pressure,
        buffer_bytes: args.buffer,
        max_stall_us: micros(args.max_stall)?,
        max_arm_us: micros(args.max_arm)?,
        disks: args.disks,
        frozen: frozen(&args.frozen)?,
        parent: args.parent.as_deref().map(absolute).transpose()?,
        labels: args
            .labels
            .iter()
            .map(|label| (label.key.clone(), label.value.clone()))
            .collect(),
    })
}

fn frozen(assignments: &[Assignment]) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut frozen = by_id::<PathBuf>("--frozen", assignments)?;
    for path in frozen.values_mut() {
        *path = absolute(path)?;
    }
    Ok(frozen)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
}

fn micros(time: Duration) -> anyhow::Result<u64> {
    u64::try_from(time.as_micros()).context("the time is too long")
}

/// Starts the snapshot and watches it until it has ended.
async fn follow(
    client: &Client,
    request: &SnapshotRequest,
    show_bar: bool,
) -> anyhow::Result<SnapshotStatus> {
    // Watched from before the begin, so that no interrupt is lost.
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut status: SnapshotStatus = client.send_json(Method::POST, route::SNAPSHOTS, request).await?;
    let bar = SnapshotBar::new(show_bar);
    let mut interval = FIRST_INTERVAL;
    while status.state == SnapshotState::Running {
        bar.show(&status.progress);
        let given_up = tokio::select! {
            () = tokio::time::sleep(interval) => false,
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
        };
        interval = (interval * 2).min(LAST_INTERVAL);
        if given_up {
            // A snapshot that ended this moment is no error; its state tells.
            let _: anyhow::Result<SnapshotStatus> =
                client.send(Method::DELETE, route::CURRENT_SNAPSHOT).await;
        }
        let now: SnapshotStatus = client.send(Method::GET, route::CURRENT_SNAPSHOT).await?;
        anyhow::ensure!(
            now.id == status.id,
            "another snapshot was begun; how this one ended is not known"
        );
        status = now;
    }
    bar.finish();
    Ok(status)
}
