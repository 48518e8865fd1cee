//! A disk as the machine's owner sees it, beside the device that the guest sees.
//!
//! What the guest's requests reach is the *top*: it changes when an overlay is put on, with requests kept out by
//! the gate. Size and access never change, so that the device that the guest knows stays the same.
//!
//! Lock order: `change`, then the gate, then `top`.

mod event;
mod flatten;
mod gate;
mod internal;
mod layers;
mod open;
mod overlay;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use qcow2::Image;

use crate::block::image::ImageFile;
use crate::block::{BlockBackend, RawFile, SECTOR_BYTES};
use crate::config::{DiskConfig, DiskFormat};
use crate::device::DRAIN_TIMEOUT;
use crate::error::{Error, Result};

pub use event::DiskEvent;
pub use flatten::{FlattenOptions, FlattenProgress};
pub use gate::DiskHold;
pub(super) use gate::{Gate, Pass};
pub use internal::InternalSnapshot;
pub use layers::LayerInfo;
pub(super) use open::open_error;
pub use overlay::{FrozenDisk, FrozenFor, PreparedOverlay};

/// A disk; clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    config: DiskConfig,
    len_bytes: u64,
    read_only: bool,
    /// Held by who changes what the disk consists of.
    change: Mutex<()>,
    /// Held while the disk is flattened.
    flattening: Mutex<()>,
    /// What requests reach; each takes its own reference.
    top: RwLock<Top>,
    gate: Arc<Gate>,
    /// There once the disk is closed.
    closed: OnceLock<DiskHold>,
    listeners: event::Listeners,
}

/// What a disk consists of.
struct Top {
    backend: Arc<dyn BlockBackend>,
    store: Store,
}

/// Where the bytes are.
#[derive(Clone)]
enum Store {
    /// In one file.
    Raw {
        file: Arc<RawFile>,
        path: PathBuf,
        nameless: bool,
    },
    /// In an image and its backing files.
    Image(Arc<Image>),
    /// In no file.
    Other,
}

impl Disk {
    /// Opens the image that `config` names, locked against use by other programs.
    ///
    /// # Errors
    /// The image cannot be opened, is in use, is the base of an overlay, or is not a whole number of sectors.
    pub fn open(config: &DiskConfig) -> Result<Self> {
        Self::of(config, open::open(config)?)
    }

    /// Makes a disk of a store of bytes that is in no file.
    ///
    /// # Errors
    /// The system gives no more event descriptors.
    pub fn new(config: &DiskConfig, backend: Arc<dyn BlockBackend>) -> Result<Self> {
        let store = Store::Other;
        Self::of(config, Top { backend, store })
    }

    fn of(config: &DiskConfig, top: Top) -> Result<Self> {
        let len_bytes = top.backend.len_bytes();
        if len_bytes == 0 || !len_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::DiskSize {
                path: config.file.clone(),
                len_bytes,
            });
        }
        let inner = Inner {
            config: config.clone(),
            len_bytes,
            read_only: top.backend.is_read_only(),
            change: Mutex::default(),
            flattening: Mutex::default(),
            top: RwLock::new(top),
            gate: Gate::new()?,
            closed: OnceLock::new(),
            listeners: event::Listeners::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Returns the disk's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.config.id
    }

    /// Returns the configuration that the disk was opened by.
    #[must_use]
    pub fn config(&self) -> &DiskConfig {
        &self.inner.config
    }

    /// Returns what keeps the disk's bytes now.
    #[must_use]
    pub fn backend(&self) -> Arc<dyn BlockBackend> {
        Arc::clone(&self.top().backend)
    }

    /// Returns the disk's size as the guest sees it, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.inner.len_bytes
    }

    /// Tells whether the guest can only read the disk.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// Returns the files that the disk consists of now, from the top down.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerInfo> {
        self.top().store.layers()
    }

    /// Returns the number of files that the disk consists of now.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.layers().len()
    }

    /// Returns the path of the file that the guest writes to now; nothing if it has no name.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let live = self.layers().into_iter().next();
        live.filter(|live| !live.nameless).map(|live| live.path)
    }

    /// Returns how the bytes of the file that the guest writes to now make the disk's.
    #[must_use]
    pub fn format(&self) -> DiskFormat {
        match self.top().store {
            Store::Raw { .. } | Store::Other => DiskFormat::Raw,
            Store::Image(_) => DiskFormat::Qcow2,
        }
    }

    /// Returns another descriptor of the file that the guest writes to now, which may have no name any more.
    /// Position and lock are shared with the disk's own.
    ///
    /// # Errors
    /// The bytes are in no file, or the system gives no more descriptors.
    pub fn file(&self) -> io::Result<File> {
        let layers = self.layers();
        layers.first().ok_or(io::ErrorKind::Unsupported)?.file()
    }

    /// Keeps the disk as it is until the result is dropped; at once if the machine is paused, otherwise when
    /// the requests under way have completed. Several may hold a disk.
    ///
    /// # Errors
    /// A request waits for room on the medium, or requests under way did not complete in time; the disk is not
    /// held.
    pub fn hold(&self) -> Result<DiskHold> {
        self.inner.gate.hold().map_err(|reason| match reason {
            gate::NotIdle::Late => Error::Drain { after: DRAIN_TIMEOUT },
            gate::NotIdle::Waiting => self.full(),
        })
    }

    /// Ends the use of the disk: from now on requests stay in their queues, and when this returns the files hold
    /// everything, complete and durable. A request that waits for room on the medium is given up.
    ///
    /// # Errors
    /// The medium failed, or requests under way did not complete in time; what could be written is.
    pub fn close(&self) -> Result<()> {
        let _changing = self.changing();
        let held = self.hold();
        let (backend, store) = {
            let top = self.top();
            (Arc::clone(&top.backend), top.store.clone())
        };
        match store {
            Store::Image(image) => image.settle().map_err(|error| self.failed(error))?,
            Store::Raw { .. } | Store::Other if self.is_read_only() => {}
            Store::Raw { .. } | Store::Other => backend.flush().map_err(Error::io("flush of a disk"))?,
        }
        match held {
            Ok(hold) => {
                // Closed before, it is held already.
                let _ = self.inner.closed.set(hold);
                Ok(())
            }
            Err(Error::DiskFull { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells whether a request waits for room on the medium, by the policy [`OnFull::Pause`](crate::OnFull::Pause).
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.inner.gate.waits_for_room()
    }

    /// Tries the requests again that wait for room on the medium; at once if the device is at work, otherwise
    /// when it is resumed.
    pub fn retry(&self) {
        self.inner.gate.retry();
    }

    /// Has `listener` called from an I/O thread when there is something to tell; it takes the place of an earlier
    /// one, and neither waits nor calls this disk.
    pub fn on_event(&self, listener: impl Fn(DiskEvent) + Send + Sync + 'static) {
        self.inner.listeners.set(Box::new(listener));
    }

    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.inner.gate
    }

    /// Tells the owner that a request waits for room.
    pub(super) fn tell_full(&self) {
        let disk = self.id().to_owned();
        self.inner.listeners.tell(DiskEvent::Full { disk });
    }

    /// Returns the error of what cannot be done while a request waits for room.
    pub(super) fn full(&self) -> Error {
        Error::DiskFull {
            disk: self.id().to_owned(),
        }
    }

    fn top(&self) -> std::sync::RwLockReadGuard<'_, Top> {
        self.inner.top.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.inner.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Top {
    fn raw(file: RawFile, path: PathBuf, nameless: bool) -> Self {
        let file = Arc::new(file);
        Self {
            backend: Arc::clone(&file) as _,
            store: Store::Raw { file, path, nameless },
        }
    }

    fn image(image: Arc<Image>) -> Self {
        Self {
            backend: Arc::new(ImageFile(Arc::clone(&image))),
            store: Store::Image(image),
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}
