//! The socket file: created with mode 0600, never taken from a live machine, removed when its owner ends.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A bound socket; dropping it removes the file.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ApiSocket {
    /// Binds `path`, replacing a socket file that no process listens on any more.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot create the API socket {}", path.display());
        remove_stale(path).with_context(context)?;
        // Bound under a private name first: the final name never shows a socket with wider access rights.
        let private = private_name(path);
        let listener = UnixListener::bind(&private).with_context(context)?;
        let published = fs::set_permissions(&private, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::hard_link(&private, path));
        let removed = fs::remove_file(&private);
        published.and(removed).with_context(context)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Begins to listen on the current tokio runtime; the file is kept until `self` is dropped.
    pub(super) fn listen(&self) -> anyhow::Result<tokio::net::UnixListener> {
        let listener = self.listener.try_clone().context("duplicating the API socket")?;
        listener
            .set_nonblocking(true)
            .context("setting up the API socket")?;
        tokio::net::UnixListener::from_std(listener).context("setting up the API socket")
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the API socket could not be removed");
        }
    }
}

fn private_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    PathBuf::from(name)
}

/// Removes a socket file left by a dead process; refuses anything that is in use or not a socket.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !metadata.file_type().is_socket() {
        bail!("a file that is not a socket is in the way");
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("another process listens on it"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
        Err(error) => Err(error).context("it cannot be told whether another process listens on it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_may_connect_and_the_file_goes_with_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.sock");
        let socket = ApiSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no private name is left"
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn refuses_a_live_socket_and_replaces_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.sock");
        let live = UnixListener::bind(&path).unwrap();
        let error = ApiSocket::bind(&path).unwrap_err();
        assert!(
            format!("{error:#}").contains("another process listens"),
            "{error:#}"
        );
        drop(live);
        ApiSocket::bind(&path).unwrap();
    }

    #[test]
    fn refuses_to_replace_what_is_not_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.sock");
        fs::write(&path, "precious").unwrap();
        assert!(ApiSocket::bind(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
