//! `snapvm disk`: shows the disks of a running machine, and flattens their chains.

use std::time::Duration;

use anyhow::Context;
use hyper::Method;
use tokio::signal::unix::{SignalKind, signal};

use super::control::{give_up, show};
use crate::api::{DiskList, DiskStatus, FlattenRequest, FlattenState, FlattenStatus, route};
use crate::cli::{ControlArgs, DiskArgs, DiskCommand, FlattenArgs};
use crate::client::{Client, block_on};
use crate::outcome::Outcome;
use crate::output::{Facts, human_bytes, human_us, print_json};
use crate::progress::FlattenBar;

/// How long the machine is left alone before it is asked how far it is: at first, and at most.
const FIRST_INTERVAL: Duration = Duration::from_millis(5);
const LAST_INTERVAL: Duration = Duration::from_millis(200);

/// `snapvm disk`.
pub fn run(args: &DiskArgs) -> anyhow::Result<Outcome> {
    match &args.command {
        DiskCommand::List(args) => list(args),
        DiskCommand::Flatten(args) => flatten(args),
        DiskCommand::Cancel(args) => cancel(args),
    }
}

fn list(args: &ControlArgs) -> anyhow::Result<Outcome> {
    let list: DiskList = block_on(Client::new(&args.api_sock).send(Method::GET, route::DISKS))?;
    show(args, &list, |facts| {
        for disk in &list.disks {
            add_disk(facts, disk);
        }
    })
}

fn add_disk(facts: &mut Facts, disk: &DiskStatus) {
    let readonly = if disk.readonly { ", read-only" } else { "" };
    let full = if disk.full { ", a write waits for room" } else { "" };
    facts.add(
        "disk",
        format!(
            "{}, {}{readonly}{full}",
            disk.id,
            human_bytes(disk.virtual_size_bytes)
        ),
    );
    for layer in &disk.layers {
        let path = layer.path.as_ref().map(|path| path.display().to_string());
        let path = path.unwrap_or_else(|| "without a name".to_owned());
        facts.add("  file", format!("{path} ({})", layer.format));
    }
    if let Some(warning) = &disk.warning {
        facts.add("  warning", warning);
    }
}

fn flatten(args: &FlattenArgs) -> anyhow::Result<Outcome> {
    let client = Client::new(&args.control.api_sock);
    let ended = block_on(flatten_all(&client, args))?;
    if args.control.json {
        print_json(&ended)?;
    } else {
        let mut facts = Facts::default();
        for status in &ended {
            facts.add("disk", format!("{}: {}", status.disk, result_text(status)));
        }
        if ended.is_empty() {
            facts.add("disks", "each consists of one file: there is nothing to flatten");
        }
        facts.print()?;
    }
    let last = ended.into_iter().last();
    match last.map(|status| (status.state, status.error)) {
        Some((FlattenState::Failed, Some(error))) => Err(error.into()),
        Some((FlattenState::Cancelled, _)) => Ok(Outcome::No),
        _ => Ok(Outcome::Good),
    }
}

fn result_text(status: &FlattenStatus) -> String {
    let took = format!(
        "{} of {} in {}",
        human_bytes(status.bytes_done),
        human_bytes(status.bytes_total),
        human_us(status.elapsed_us)
    );
    match status.state {
        FlattenState::Done => format!("consists of one file; {took}"),
        FlattenState::Cancelled => format!("given up, the chain is as it was; {took}"),
        _ => format!("failed, the chain is as it was; {took}"),
    }
}

/// Flattens the disks that are meant one after the other, until one does not become flat.
async fn flatten_all(client: &Client, args: &FlattenArgs) -> anyhow::Result<Vec<FlattenStatus>> {
    let disks = match &args.disk {
        Some(disk) => vec![disk.clone()],
        None => {
            let list: DiskList = client.send(Method::GET, route::DISKS).await?;
            let chained = |disk: &DiskStatus| !disk.readonly && disk.layers.len() > 1;
            list.disks
                .into_iter()
                .filter(chained)
                .map(|disk| disk.id)
                .collect()
        }
    };
    let mut ended = Vec::new();
    for disk in disks {
        let request = FlattenRequest {
            disk,
            bytes_per_second: args.rate,
        };
        request.validate().map_err(anyhow::Error::msg)?;
        let status = follow(client, &request, !args.control.json).await?;
        let done = status.state == FlattenState::Done;
        ended.push(status);
        if !done {
            break;
        }
    }
    Ok(ended)
}

/// Starts a flattening and watches it until it has ended.
async fn follow(client: &Client, request: &FlattenRequest, show_bar: bool) -> anyhow::Result<FlattenStatus> {
    // Watched from before the begin, so that no interrupt is lost.
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut status: FlattenStatus = client.send_json(Method::POST, route::FLATTEN, request).await?;
    let bar = FlattenBar::new(show_bar, &request.disk);
    let mut interval = FIRST_INTERVAL;
    while status.state == FlattenState::Running {
        bar.show(status.bytes_done, status.bytes_total);
        let given_up = tokio::select! {
            () = tokio::time::sleep(interval) => false,
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
        };
        interval = (interval * 2).min(LAST_INTERVAL);
        if given_up {
            // One that ended this moment is no error; its state tells.
            let _: anyhow::Result<FlattenStatus> = client.send(Method::DELETE, route::FLATTEN).await;
        }
        let now: FlattenStatus = client.send(Method::GET, route::FLATTEN).await?;
        anyhow::ensure!(
            now.id == status.id,
            "another disk is being flattened; how this one ended is not known"
        );
        status = now;
    }
    bar.finish();
    Ok(status)
}

fn cancel(args: &ControlArgs) -> anyhow::Result<Outcome> {
    give_up(args, route::FLATTEN, |status: &FlattenStatus| {
        format!("disk {}", status.disk)
    })
}
