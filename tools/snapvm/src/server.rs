//! The control API of a running machine: HTTP and JSON on a Unix socket.
//!
//! Handlers only look at shared state or hand work to a thread that may block; a snapshot is written on a thread of
//! its own ([`jobs`]), so the API answers however busy the disk is. Every answer, also to a route that does not
//! exist, is a JSON object of [`crate::api`].

mod answer;
mod disks;
mod flatten;
mod host;
mod jobs;
mod machine;
mod routes;
mod socket;
mod vm;

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

pub use host::{Host, boot};
pub use socket::ApiSocket;
pub use vm::Vm;

/// Serves the API until everything is asked to end; then finishes the answers under way.
pub async fn serve(socket: ApiSocket, host: Arc<Host>) -> anyhow::Result<()> {
    let mut stopping = host.stopping();
    let listener = socket.listen()?;
    axum::serve(listener, routes::router(host))
        .with_graceful_shutdown(async move { wait_until_set(&mut stopping).await })
        .await
        .context("serving the API")
}

async fn wait_until_set(flag: &mut watch::Receiver<bool>) {
    // The sender lives in the host; if that is gone, so is the machine.
    let _ = flag.wait_for(|set| *set).await;
}
