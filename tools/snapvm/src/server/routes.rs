//! The routes and their handlers.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State as Shared};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use serde::Deserialize;

use super::answer::{Answer, Refusal, accepted, ok};
use super::jobs::Jobs;
use super::vm::Vm;
use crate::api::{GuestStatus, SnapshotRequest, SnapshotStatus, State, StateAnswer, Status, route};

type SharedVm = Shared<Arc<Vm>>;

/// The API of one machine.
pub fn router(vm: Arc<Vm>) -> Router {
    Router::new()
        .route(route::STATUS, get(status))
        .route(route::PAUSE, put(pause))
        .route(route::RESUME, put(resume))
        .route(route::SNAPSHOTS, post(start_snapshot))
        .route(
            route::CURRENT_SNAPSHOT,
            get(snapshot_status).delete(cancel_snapshot),
        )
        .route(route::GUEST, get(guest))
        .route(route::GUEST_GAP, put(reset_longest_gap))
        .route(route::SHUTDOWN, put(shut_down))
        .route(route::OPENAPI, get(describe))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(vm)
}

async fn status(Shared(vm): SharedVm) -> Answer<Status> {
    ok(on_own_thread(vm, Vm::status).await?)
}

async fn pause(Shared(vm): SharedVm) -> Answer<StateAnswer> {
    change(vm, |vm| vm.switch.pause(&vm.machine)).await
}

async fn resume(Shared(vm): SharedVm) -> Answer<StateAnswer> {
    change(vm, |vm| vm.switch.resume(&vm.machine)).await
}

async fn change(
    vm: Arc<Vm>,
    action: impl FnOnce(&Vm) -> Result<(), snapshot::Error> + Send + 'static,
) -> Answer<StateAnswer> {
    let changed = on_own_thread(vm, move |vm| action(vm).map(|()| vm.state())).await?;
    match changed {
        Ok(state) => ok(StateAnswer { state }),
        Err(error) => Err(Refusal::because(StatusCode::CONFLICT, &error)),
    }
}

/// Does what looks at the machine, and so may wait for its locks, where it holds up no other request.
async fn on_own_thread<T: Send + 'static>(
    vm: Arc<Vm>,
    work: impl FnOnce(&Vm) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || work(&vm)).await;
    done.map_err(|error| Refusal::because(StatusCode::INTERNAL_SERVER_ERROR, &error))
}

/// Query of `POST /v1/snapshots`.
#[derive(Debug, Deserialize)]
struct StartQuery {
    #[serde(default)]
    wait: bool,
}

async fn start_snapshot(
    Shared(vm): SharedVm,
    query: Result<Query<StartQuery>, axum::extract::rejection::QueryRejection>,
    body: Bytes,
) -> Answer<SnapshotStatus> {
    let bad_request =
        |error: &(dyn std::error::Error + 'static)| Refusal::because(StatusCode::BAD_REQUEST, error);
    let Query(query) = query.map_err(|error| bad_request(&error))?;
    let request: SnapshotRequest = serde_json::from_slice(&body).map_err(|error| bad_request(&error))?;
    let options = request
        .to_options(vm.name())
        .map_err(|problem| Refusal::new(StatusCode::BAD_REQUEST, problem))?;
    if on_own_thread(Arc::clone(&vm), Vm::state).await? == State::Stopped {
        return Err(Refusal::new(StatusCode::CONFLICT, "the machine has stopped"));
    }
    let ended =
        Jobs::start(&vm, request, options).map_err(|busy| Refusal::because(StatusCode::CONFLICT, &busy))?;
    if query.wait {
        ended.wait().await;
    }
    let status = latest(&vm)?;
    if query.wait { ok(status) } else { accepted(status) }
}

async fn snapshot_status(Shared(vm): SharedVm) -> Answer<SnapshotStatus> {
    ok(latest(&vm)?)
}

fn latest(vm: &Vm) -> Result<SnapshotStatus, Refusal> {
    vm.jobs
        .latest()
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "no snapshot was asked for yet"))
}

async fn cancel_snapshot(Shared(vm): SharedVm) -> Answer<SnapshotStatus> {
    if !vm.jobs.cancel() {
        return Err(Refusal::new(StatusCode::CONFLICT, "no snapshot is being written"));
    }
    accepted(latest(&vm)?)
}

async fn guest(Shared(vm): SharedVm) -> Answer<GuestStatus> {
    ok(on_own_thread(vm, Vm::guest).await?.ok_or_else(not_builtin)?)
}

async fn reset_longest_gap(Shared(vm): SharedVm) -> Answer<GuestStatus> {
    ok(on_own_thread(vm, Vm::reset_longest_gap)
        .await?
        .ok_or_else(not_builtin)?)
}

fn not_builtin() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "the guest is not the built-in one")
}

async fn shut_down(Shared(vm): SharedVm) -> Answer<StateAnswer> {
    change(vm, |vm| {
        vm.shut_down();
        Ok(())
    })
    .await
}

async fn describe() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        include_str!("../../openapi.json"),
    )
}

async fn unknown_route(uri: Uri) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("no such route: {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
    )
}
