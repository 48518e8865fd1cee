//! Everything that the guest does at once, and its report every other second.
//!
//! Each load is one module and one or more threads; all share [`Health`], into which they count what went right and
//! write down what went wrong. A load that the machine has no device for is left out, and its counters stay 0.

mod console;
mod disk;
mod entropy;
mod files;
mod health;
mod kernel_log;
mod memory;
mod network;
mod pipe;
mod report;
mod timers;
mod vsock_stream;

use std::sync::Arc;
use std::thread;

use anyhow::Result;
use linux_guest::disk::Counter;

use crate::options::Options;
use health::Health;

pub use pipe::{PEER, run_peer};
pub use report::say;

/// Starts all loads and reports until the console says `poweroff`.
pub fn run(options: &Options) -> Result<()> {
    let health = Arc::new(Health::default());
    let start = |name: &'static str, load: Load| {
        let health = Arc::clone(&health);
        thread::spawn(move || {
            if let Err(error) = load(&health) {
                health.error(format!("{name}: {error:#}"));
            }
        });
    };
    start("kernel log", Box::new(kernel_log::watch));
    memory::start(options, &start);
    timers::start(&start);
    start("pipe", Box::new(pipe::exchange));
    let seed = options.seed;
    if let Some(disk) = disk::find("counter")? {
        let counter = Counter::alone(seed);
        start(
            "disk",
            Box::new(move |health| disk::count_flushed(&disk, counter, health)),
        );
    }
    if let Some(disk) = disk::find("files")? {
        let (tail, counter) = (disk.clone(), Counter::behind_files(seed));
        start(
            "tail",
            Box::new(move |health| disk::count_unflushed(&tail, counter, health)),
        );
        start("files", Box::new(move |health| files::write(&disk, seed, health)));
    }
    start("network", Box::new(network::send));
    start("console", Box::new(console::write));
    if options.vsock {
        start(
            "vsock",
            Box::new(move |health| vsock_stream::receive(seed, health)),
        );
    }
    report::until_told(&health)
}

/// What a thread does, for ever or until it finds something wrong.
type Load = Box<dyn FnOnce(&Health) -> Result<()> + Send>;

/// How a load is given its own thread.
type Start<'a> = &'a dyn Fn(&'static str, Load);
