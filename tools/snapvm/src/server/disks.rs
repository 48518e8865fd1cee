//! Handlers of the machine's disks.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::StatusCode;

use snapshot::DEPTH_TO_FLATTEN;
use vmm::{Disk, DiskFormat, LayerInfo};

use super::answer::{Answer, Refusal, accepted, ok};
use super::flatten::{Flattens, NotFlattened};
use super::routes::{SharedHost, StartQuery, WaitQuery, on_own_thread, vm};
use super::vm::Vm;
use crate::api::{DiskLayer, DiskList, DiskStatus, FlattenRequest, FlattenStatus, State};

pub(super) async fn list(Shared(host): SharedHost) -> Answer<DiskList> {
    let disks = on_own_thread(vm(&host)?, |vm| vm.machine.disks().iter().map(status).collect());
    ok(DiskList { disks: disks.await? })
}

fn status(disk: &Disk) -> DiskStatus {
    let layers = disk.layers();
    let deep = !disk.is_read_only() && layers.len() > DEPTH_TO_FLATTEN;
    DiskStatus {
        id: disk.id().to_owned(),
        virtual_size_bytes: disk.len_bytes(),
        readonly: disk.is_read_only(),
        full: disk.waits_for_room(),
        layers: layers.iter().map(layer).collect(),
        warning: deep.then(|| format!("it consists of {} files: flatten it", layers.len())),
    }
}

fn layer(layer: &LayerInfo) -> DiskLayer {
    DiskLayer {
        path: (!layer.nameless).then(|| layer.path.clone()),
        format: match layer.format {
            DiskFormat::Qcow2 => "qcow2".to_owned(),
            _ => "raw".to_owned(),
        },
    }
}

pub(super) async fn start_flatten(
    Shared(host): SharedHost,
    query: WaitQuery,
    body: Bytes,
) -> Answer<FlattenStatus> {
    let vm = vm(&host)?;
    let StartQuery { wait } = StartQuery::of(query)?;
    let request: FlattenRequest =
        serde_json::from_slice(&body).map_err(|error| Refusal::because(StatusCode::BAD_REQUEST, &error))?;
    request
        .validate()
        .map_err(|problem| Refusal::new(StatusCode::BAD_REQUEST, problem))?;
    let starting = Arc::clone(&vm);
    let started = on_own_thread(Arc::clone(&vm), move |vm| match vm.state() {
        State::Stopped => None,
        _ => Some(Flattens::start(&starting, &request)),
    });
    let stopped = || Refusal::new(StatusCode::CONFLICT, "the machine has stopped");
    let started = started.await?.ok_or_else(stopped)?;
    let ended = started.map_err(|error| {
        let status = match error {
            NotFlattened::NoSuchDisk(_) => StatusCode::BAD_REQUEST,
            NotFlattened::Busy(_) | NotFlattened::Snapshot => StatusCode::CONFLICT,
        };
        Refusal::because(status, &error)
    })?;
    if wait {
        ended.wait().await;
    }
    let status = latest(&vm)?;
    if wait { ok(status) } else { accepted(status) }
}

pub(super) async fn flatten_status(Shared(host): SharedHost) -> Answer<FlattenStatus> {
    ok(latest(&*vm(&host)?)?)
}

pub(super) async fn cancel_flatten(Shared(host): SharedHost) -> Answer<FlattenStatus> {
    let vm = vm(&host)?;
    if !vm.flattens.cancel() {
        return Err(Refusal::new(StatusCode::CONFLICT, "no disk is being flattened"));
    }
    accepted(latest(&vm)?)
}

fn latest(vm: &Vm) -> Result<FlattenStatus, Refusal> {
    vm.flattens
        .latest()
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "no disk was flattened yet"))
}
