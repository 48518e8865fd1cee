//! Handlers of the machine's description and of its balloon.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::StatusCode;

use super::answer::{Answer, Refusal, created, ok};
use super::host::NotMade;
use super::routes::{SharedHost, on_own_thread, vm};
use super::vm::Vm;
use crate::api::{BalloonStatus, BalloonTarget};
use crate::description::MachineDescription;

pub(super) async fn describe_machine(Shared(host): SharedHost) -> Answer<MachineDescription> {
    ok(vm(&host)?.description.clone())
}

pub(super) async fn make_machine(Shared(host): SharedHost, body: Bytes) -> Answer<MachineDescription> {
    let bad_request = |problem| Refusal::new(StatusCode::BAD_REQUEST, problem);
    let description: MachineDescription =
        serde_json::from_slice(&body).map_err(|error| Refusal::because(StatusCode::BAD_REQUEST, &error))?;
    description.validate().map_err(bad_request)?;
    description.require_absolute_paths().map_err(bad_request)?;
    let made = {
        let description = description.clone();
        on_own_thread(Arc::clone(&host), move |host| host.make(description)).await?
    };
    made.map_err(|error| {
        let status = match error {
            NotMade::Exists | NotMade::Ending => StatusCode::CONFLICT,
            NotMade::Failed(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Refusal::because(status, &error)
    })?;
    created(description)
}

pub(super) async fn balloon(Shared(host): SharedHost) -> Answer<BalloonStatus> {
    ok(on_own_thread(vm(&host)?, Vm::balloon)
        .await?
        .ok_or_else(no_balloon)?)
}

pub(super) async fn set_balloon(Shared(host): SharedHost, body: Bytes) -> Answer<BalloonStatus> {
    let vm = vm(&host)?;
    let target: BalloonTarget =
        serde_json::from_slice(&body).map_err(|error| Refusal::because(StatusCode::BAD_REQUEST, &error))?;
    let status = on_own_thread(vm, move |vm| vm.set_balloon(target.target_bytes)).await?;
    let status = status.map_err(|problem| Refusal::new(StatusCode::BAD_REQUEST, problem))?;
    ok(status.ok_or_else(no_balloon)?)
}

fn no_balloon() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "the machine has no balloon")
}
