//! The routes and their handlers.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Shared};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use serde::Deserialize;

use super::answer::{Answer, Refusal, accepted, ok};
use super::disks;
use super::host::Host;
use super::jobs::Jobs;
use super::machine::{balloon, describe_machine, make_machine, set_balloon};
use super::vm::Vm;
use crate::api::{GuestStatus, SnapshotRequest, SnapshotStatus, State, StateAnswer, Status, route};

pub(super) type SharedHost = Shared<Arc<Host>>;

/// The API of one machine, or of the room for one.
pub fn router(host: Arc<Host>) -> Router {
    Router::new()
        .route(route::STATUS, get(status))
        .route(route::MACHINE, get(describe_machine).put(make_machine))
        .route(route::BALLOON, get(balloon).put(set_balloon))
        .route(route::PAUSE, put(pause))
        .route(route::RESUME, put(resume))
        .route(route::SNAPSHOTS, post(start_snapshot))
        .route(
            route::CURRENT_SNAPSHOT,
            get(snapshot_status).delete(cancel_snapshot),
        )
        .route(route::DISKS, get(disks::list))
        .route(
            route::FLATTEN,
            post(disks::start_flatten)
                .get(disks::flatten_status)
                .delete(disks::cancel_flatten),
        )
        .route(route::GUEST, get(guest))
        .route(route::GUEST_GAP, put(reset_longest_gap))
        .route(route::SHUTDOWN, put(shut_down))
        .route(route::OPENAPI, get(describe))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(host)
}

/// The machine, or a refusal because there is none.
pub(super) fn vm(host: &Host) -> Result<Arc<Vm>, Refusal> {
    host.vm().ok_or_else(|| {
        let reason = format!(
            "there is no machine yet: PUT {} with its description makes one",
            route::MACHINE
        );
        Refusal::new(StatusCode::NOT_FOUND, reason)
    })
}

async fn status(Shared(host): SharedHost) -> Answer<Status> {
    ok(on_own_thread(vm(&host)?, Vm::status).await?)
}

async fn pause(Shared(host): SharedHost) -> Answer<StateAnswer> {
    change(vm(&host)?, |vm| vm.switch.pause(&vm.machine)).await
}

async fn resume(Shared(host): SharedHost) -> Answer<StateAnswer> {
    change(vm(&host)?, |vm| vm.switch.resume(&vm.machine)).await
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
pub(super) async fn on_own_thread<S: Send + Sync + 'static, T: Send + 'static>(
    shared: Arc<S>,
    work: impl FnOnce(&S) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || work(&shared)).await;
    done.map_err(|error| Refusal::because(StatusCode::INTERNAL_SERVER_ERROR, &error))
}

/// Query of what begins something.
#[derive(Debug, Deserialize)]
pub(super) struct StartQuery {
    /// Whether the answer waits for its end.
    #[serde(default)]
    pub(super) wait: bool,
}

/// The query, or what is wrong with it.
pub(super) type WaitQuery = Result<Query<StartQuery>, QueryRejection>;

impl StartQuery {
    /// The query, or a refusal.
    pub(super) fn of(query: WaitQuery) -> Result<Self, Refusal> {
        let Query(query) = query.map_err(|error| Refusal::because(StatusCode::BAD_REQUEST, &error))?;
        Ok(query)
    }
}

async fn start_snapshot(Shared(host): SharedHost, query: WaitQuery, body: Bytes) -> Answer<SnapshotStatus> {
    let bad_request =
        |error: &(dyn std::error::Error + 'static)| Refusal::because(StatusCode::BAD_REQUEST, error);
    let vm = vm(&host)?;
    let query = StartQuery::of(query)?;
    let request: SnapshotRequest = serde_json::from_slice(&body).map_err(|error| bad_request(&error))?;
    let options = request
        .to_options(vm.name(), &vm.fingerprints)
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

async fn snapshot_status(Shared(host): SharedHost) -> Answer<SnapshotStatus> {
    ok(latest(&*vm(&host)?)?)
}

fn latest(vm: &Vm) -> Result<SnapshotStatus, Refusal> {
    vm.jobs
        .latest()
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "no snapshot was asked for yet"))
}

async fn cancel_snapshot(Shared(host): SharedHost) -> Answer<SnapshotStatus> {
    let vm = vm(&host)?;
    if !vm.jobs.cancel() {
        return Err(Refusal::new(StatusCode::CONFLICT, "no snapshot is being written"));
    }
    accepted(latest(&vm)?)
}

async fn guest(Shared(host): SharedHost) -> Answer<GuestStatus> {
    ok(on_own_thread(vm(&host)?, Vm::guest)
        .await?
        .ok_or_else(not_builtin)?)
}

async fn reset_longest_gap(Shared(host): SharedHost) -> Answer<GuestStatus> {
    ok(on_own_thread(vm(&host)?, Vm::reset_longest_gap)
        .await?
        .ok_or_else(not_builtin)?)
}

fn not_builtin() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "the guest is not the built-in one")
}

async fn shut_down(Shared(host): SharedHost) -> Answer<StateAnswer> {
    let state = on_own_thread(host, |host| {
        host.shut_down();
        host.vm().map_or(State::Stopped, |vm| vm.state())
    });
    ok(StateAnswer { state: state.await? })
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
