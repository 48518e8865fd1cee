//! `pause`, `resume`, `status` and `cancel`: one request each.

use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{SnapshotStatus, StateAnswer, Status, route};
use crate::cli::ControlArgs;
use crate::client::{Client, Refused, block_on};
use crate::outcome::Outcome;
use crate::output::{Facts, human_bytes, print, print_json};
use crate::report;

/// `snapvm pause`.
pub fn pause(args: &ControlArgs) -> anyhow::Result<Outcome> {
    change(args, route::PAUSE)
}

/// `snapvm resume`.
pub fn resume(args: &ControlArgs) -> anyhow::Result<Outcome> {
    change(args, route::RESUME)
}

fn change(args: &ControlArgs, route: &str) -> anyhow::Result<Outcome> {
    let answer: StateAnswer = block_on(Client::new(&args.api_sock).send(Method::PUT, route))?;
    show(args, &answer, |facts| {
        facts.add("state", answer.state);
    })
}

/// `snapvm status`.
pub fn status(args: &ControlArgs) -> anyhow::Result<Outcome> {
    let status: Status = block_on(Client::new(&args.api_sock).send(Method::GET, route::STATUS))?;
    show(args, &status, |facts| {
        if !status.name.is_empty() {
            facts.add("name", &status.name);
        }
        match &status.stopped_reason {
            Some(reason) => facts.add("state", format!("{} ({reason})", status.state)),
            None => facts.add("state", status.state),
        };
        for disk in &status.disks_full {
            facts.add(
                "disk full",
                format!("{disk}: make room, then `snapvm resume` tries again"),
            );
        }
        facts.add("cpus", status.cpus);
        facts.add("memory", human_bytes(status.memory_bytes));
        facts.add("pid", status.pid);
        facts.add(
            "up",
            format!("{}.{} s", status.uptime_ms / 1000, status.uptime_ms % 1000 / 100),
        );
        if let Some(guest) = &status.guest {
            report::add_guest(facts, guest);
        }
        if let Some(snapshot) = &status.snapshot {
            report::add_status(facts, snapshot);
        }
    })
}

/// `snapvm cancel`.
pub fn cancel(args: &ControlArgs) -> anyhow::Result<Outcome> {
    give_up(args, route::CURRENT_SNAPSHOT, |snapshot: &SnapshotStatus| {
        snapshot.path.display().to_string()
    })
}

/// Asks for the end of something; that there is nothing to end is an answer as well.
pub(super) fn give_up<T: Serialize + DeserializeOwned>(
    args: &ControlArgs,
    route: &str,
    name: impl FnOnce(&T) -> String,
) -> anyhow::Result<Outcome> {
    let client = Client::new(&args.api_sock);
    match block_on(client.send::<T>(Method::DELETE, route)) {
        Ok(status) => show(args, &status, |facts| {
            facts.add("cancelling", name(&status));
        }),
        Err(error) => match error.downcast::<Refused>()? {
            refused if refused.status == StatusCode::CONFLICT => {
                if args.json {
                    print_json(&refused.reason)?;
                } else {
                    print(&format!("{}\n", refused.reason))?;
                }
                Ok(Outcome::No)
            }
            refused => Err(refused.into()),
        },
    }
}

/// Prints an answer as JSON or as facts.
pub(super) fn show(
    args: &ControlArgs,
    value: &impl Serialize,
    describe: impl FnOnce(&mut Facts),
) -> anyhow::Result<Outcome> {
    if args.json {
        print_json(value)?;
    } else {
        let mut facts = Facts::default();
        describe(&mut facts);
        facts.print()?;
    }
    Ok(Outcome::Good)
}
