//! The client of the control API: one request at a time over the machine's Unix socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::ApiError;

/// Longest answer that is read: far beyond what the API gives.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Talks to one running machine.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// A request was understood and refused.
#[derive(Debug, thiserror::Error)]
#[error("the machine refused")]
pub struct Refused {
    /// The HTTP status.
    pub status: StatusCode,
    /// The machine's reason.
    #[source]
    pub reason: ApiError,
}

impl Client {
    /// Makes a client; the socket is opened by each request.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Sends a request without a body.
    pub async fn send<T: DeserializeOwned>(&self, method: Method, route: &str) -> anyhow::Result<T> {
        self.exchange(method, route, Bytes::new()).await
    }

    /// Sends a request with a JSON body.
    pub async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.exchange(method, route, serde_json::to_vec(body)?.into())
            .await
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let (status, answer) = self
            .round_trip(method, route, body)
            .await
            .with_context(|| format!("cannot reach a machine at {}", self.socket.display()))?;
        if status.is_success() {
            return serde_json::from_slice(&answer).context("the machine's answer is not understood");
        }
        match serde_json::from_slice(&answer) {
            Ok(reason) => Err(Refused { status, reason }.into()),
            Err(_) => bail!("the machine answered with status {status}"),
        }
    }

    async fn round_trip(
        &self,
        method: Method,
        route: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // An error of the connection reaches the request as well; the task needs no watching.
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
        let bytes = body
            .collect()
            .await
            .map_err(anyhow::Error::from_boxed)?
            .to_bytes();
        connection.abort();
        Ok((status, bytes))
    }
}

/// Runs a client's work to its end on this thread.
///
/// # Errors
/// The work's own, or the system gives no event queue.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the event loop")?.block_on(work)
}
