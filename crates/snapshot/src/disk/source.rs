//! A disk as a save needs it.

use std::any::Any;
use std::fmt::Debug;
use std::fs::File;
use std::io;

use vmm::{Disk, DiskConfig};

/// A disk whose content can be held still.
pub trait DiskSource: Debug + Send + Sync {
    /// What the disk is called and where it is.
    fn config(&self) -> &DiskConfig;

    /// Opens the file that has the content.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn file(&self) -> io::Result<File>;

    /// Keeps the content as it is until the answer is dropped; requests of the guest wait.
    ///
    /// Called while the machine is paused, it takes no time: nothing is under way.
    ///
    /// # Errors
    /// Requests under way do not complete.
    fn hold(&self) -> io::Result<Box<dyn Any + Send>>;
}

impl DiskSource for Disk {
    fn config(&self) -> &DiskConfig {
        Disk::config(self)
    }

    fn file(&self) -> io::Result<File> {
        Disk::file(self)
    }

    fn hold(&self) -> io::Result<Box<dyn Any + Send>> {
        let hold = Disk::hold(self).map_err(io::Error::other)?;
        Ok(Box::new(hold))
    }
}
