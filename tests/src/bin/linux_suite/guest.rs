//! A Linux guest under every load at once: how it is booted, restored, and known to be well.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::plan::{self, Extra, Plan, PlannedKernel};
use linux_guest::status::Status;

use crate::clock::Policy;
use crate::disks::Disks;
use crate::machine::{Machine, Said};
use crate::report::Seen;
use crate::sender::Sender;

/// Passes of the checker after which every page was looked at once from beginning to end.
pub const PASSES: u64 = 2;

/// Addresses of the source, and of a copy that is restored beside it.
const SOURCE_CID: u32 = 3;
const COPY_CID: u32 = 4;

/// Taps of the source and of the copy; the machines make them.
const SOURCE_TAP: &str = "source0";
const COPY_TAP: &str = "copy0";

/// A guest that can be booted.
#[derive(Debug)]
pub struct Guest<'a> {
    /// Where everything is.
    pub plan: &'a Plan,
    /// What it boots.
    pub kernel: &'a PlannedKernel,
    /// Its disks.
    pub disks: Disks<'a>,
    cpus: u32,
    extra: Extra,
    seed: u64,
}

impl<'a> Guest<'a> {
    /// Describes a guest.
    pub fn new(
        plan: &'a Plan,
        kernel: &'a PlannedKernel,
        cpus: u32,
        disks: plan::Disks,
        extra: Extra,
    ) -> Self {
        let seed = u64::from(cpus) + 10;
        Self {
            plan,
            kernel,
            disks: Disks::new(plan, disks, seed),
            cpus,
            extra,
            seed,
        }
    }

    /// What reports call it.
    pub fn name(&self) -> String {
        let extra = match self.extra {
            Extra::Nothing => "",
            Extra::Vhost => ", vhost",
            Extra::Devices => ", net, console and balloon",
        };
        format!(
            "{}, {} vCPU, {}{extra}",
            self.kernel.name,
            self.cpus,
            self.disks.name()
        )
    }

    /// Whether two copies of a snapshot can be told apart by their guests, and may run at once.
    pub fn has_twins(&self) -> bool {
        self.kernel.knows_generation_id && self.extra == Extra::Nothing
    }

    /// Serves the stream for a machine that is called `name`; for all of them, where the kernel serves vsock.
    pub fn sender(&self, name: &str) -> Result<Sender> {
        if self.extra == Extra::Vhost {
            Sender::on_vsock(self.seed)
        } else {
            Sender::on_socket(&self.socket(name), self.seed)
        }
    }

    /// Serves the stream for a copy, unless the source's sender does.
    pub fn sender_of_copy(&self, name: &str) -> Result<Option<Sender>> {
        let own = self.extra != Extra::Vhost;
        own.then(|| self.sender(name)).transpose()
    }

    /// Boots it on its disks as they are.
    pub fn boot(&self, name: &str) -> Result<Machine> {
        let vsock = match self.extra {
            Extra::Vhost => format!("cid={SOURCE_CID},vhost"),
            _ => format!("cid={SOURCE_CID},uds={}", self.socket(name).display()),
        };
        let cmdline = format!(
            "console=ttyS0 quiet panic=-1 vmsnap.memory_mib=16 vmsnap.pages_per_second=200 vmsnap.seed={} vmsnap.vsock=1",
            self.seed
        );
        let (cpus, kernel) = (self.cpus.to_string(), self.kernel);
        let mut arguments = [
            ["run", "--kernel", text(&kernel.image)?],
            ["--initrd", text(&kernel.initrd)?, "--cmdline"],
            [&cmdline, "--memory", "128M"],
            ["--cpus", &cpus, "--vsock"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
        arguments.push(vsock);
        arguments.extend(self.disks.run_arguments());
        if self.extra == Extra::Devices {
            let devices = format!("--net tap={SOURCE_TAP} --console null --balloon free-page-reporting");
            arguments.extend(devices.split(' ').map(str::to_owned));
        }
        Machine::start(&self.plan.programs, &self.plan.work, name, &arguments)
    }

    /// Restores it beside the source; `more` are further arguments of `snapvm restore`.
    pub fn restore(&self, file: &Path, policy: Policy, name: &str, more: &[String]) -> Result<Machine> {
        let mut arguments = vec!["restore".to_owned(), text(file)?.to_owned()];
        // The kernel gives each address to one machine only, and the source has its own still.
        let vsock = match self.extra {
            Extra::Vhost => ["--vsock-cid".to_owned(), COPY_CID.to_string()],
            _ => ["--vsock-uds".to_owned(), text(&self.socket(name))?.to_owned()],
        };
        arguments.extend(vsock);
        if self.extra == Extra::Devices {
            arguments.extend(["--net".to_owned(), format!("net0={COPY_TAP}")]);
        }
        if policy == Policy::Advance {
            arguments.push("--advance-clock".to_owned());
        }
        arguments.extend_from_slice(more);
        Machine::start(&self.plan.programs, &self.plan.work, name, &arguments)
    }

    /// Waits for user space, and until every load is on its way.
    pub fn wait_for_loads(&self, machine: &mut Machine, seen: &mut Seen) -> Result<Said> {
        let first = machine.wait_for("user space", |_status| true)?;
        seen.time("boot", machine.started.elapsed());
        seen.number("kernel_to_user_space_ms", first.status.user_space_ms as f64);
        let cpus = first.status.cpus;
        ensure!(cpus == self.cpus as usize, "the guest has {cpus} processors");
        let ready = machine.wait_for("every load", |status| {
            self.loads(status).iter().all(|counter| *counter > 0)
        })?;
        ensure!(!ready.status.entropy.urandom.is_empty(), "no random bytes");
        ensure!(
            !ready.status.entropy.hwrng.is_empty(),
            "no random bytes of the host"
        );
        Ok(ready)
    }

    /// Whether a restored guest has looked at everything that it was restored with, and every load goes on.
    pub fn has_worked(&self, first: &Status, now: &Status) -> bool {
        let went_on = self
            .loads(first)
            .iter()
            .zip(self.loads(now))
            .all(|(then, now)| now > *then);
        went_on
            && now.passes >= first.passes + PASSES
            && now.file_cycles > first.file_cycles + 16
            && now.stream_connections > 1
    }

    /// A path in the directory of the plan.
    pub fn path(&self, name: &str) -> PathBuf {
        self.plan.work.join(name)
    }

    /// The counters of all loads.
    fn loads(&self, status: &Status) -> Vec<u64> {
        let mut loads = vec![
            status.passes,
            status.page_writes,
            status.disk_flushed,
            status.tail_completed,
            status.file_cycles,
            status.timer_ticks,
            status.exchanges,
            status.stream_bytes,
        ];
        if self.extra == Extra::Devices {
            loads.extend([status.packets, status.console_lines]);
        }
        loads
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.vsock"))
    }
}

/// Whether a restored guest has held both of its disks against its memory: every step of a counter begins so.
pub fn has_compared(first: &Status, now: &Status) -> bool {
    now.disk_completed > first.disk_completed && now.tail_completed > first.tail_completed
}

/// A path as an argument.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("paths of the suite are UTF-8")
}
