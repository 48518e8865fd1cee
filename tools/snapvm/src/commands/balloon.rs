//! `snapvm balloon`: asks the guest for memory, or shows how much it has given up.

use hyper::Method;

use super::control::show;
use crate::api::{BalloonStatus, BalloonTarget, route};
use crate::cli::BalloonArgs;
use crate::client::{Client, block_on};
use crate::outcome::Outcome;
use crate::output::human_bytes;

/// `snapvm balloon`.
pub fn run(args: &BalloonArgs) -> anyhow::Result<Outcome> {
    let client = Client::new(&args.control.api_sock);
    let status: BalloonStatus = match args.target {
        None => block_on(client.send(Method::GET, route::BALLOON))?,
        Some(target_bytes) => {
            let target = BalloonTarget { target_bytes };
            block_on(client.send_json(Method::PUT, route::BALLOON, &target))?
        }
    };
    show(&args.control, &status, |facts| {
        facts.add("target", human_bytes(status.target_bytes));
        facts.add("actual", human_bytes(status.actual_bytes));
    })
}
