//! Puts programs, kernels and a plan together, has the suite run, and collects what it says.
//!
//! Everything of a run lies in `target/guests/runs/NAME`, from one run to the next, so that a failure can be looked
//! into: the plan, the outer console, every entry, and the logs that the suite sent along with its failures.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use linux_guest::disk::FILE_SYSTEM_BYTES;

use super::archive::Archive;
use super::kernel::{GENERATION_ID_MODULE, Kernel};
use super::qemu_img::QemuImg;
use super::ran::Ran;
use super::{outer, programs};
use crate::plan::{Plan, PlannedKernel, Round};

/// Modules that an inner guest has use for.
const INNER_MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    GENERATION_ID_MODULE,
    "crc32c_generic",
    "ext4",
];

/// Modules that make an outer kernel a host.
const OUTER_MODULES: &[&str] = &["kvm_amd", "vhost_vsock", "vhost_net", "tun"];

/// Parameters of modules, by file. A processor that waits for its guest by polling has nothing else to do on hardware;
/// the emulated one is needed for everything.
const PARAMETERS: &[(&str, &str)] = &[("kvm.ko", " halt_poll_ns=0")];

/// Everything of the suite lies here, below the root of the outer kernel or the directory of the run.
const PLACE: &str = "suite";

/// A run of the suite that is wanted.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Name of the run's directory.
    pub name: &'a str,
    /// The outer kernel, where one is needed.
    pub outer: &'a str,
    /// The inner kernels that the rounds name.
    pub kernels: &'a [&'a str],
    /// How long all of it may take.
    pub limit: Duration,
}

/// What this machine lacks to run the suite; `cargo xtask setup` brings it where it can.
#[derive(Debug)]
pub struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} here", self.0)
    }
}

impl std::error::Error for Missing {}

/// Runs the suite; `rounds` makes the rounds from the kernels as the suite finds them, and the place of programs.
///
/// # Errors
/// [`Missing`] when this machine has not what it takes, which is worth a skip; anything else is a failure.
pub fn run(wanted: &Wanted<'_>, rounds: impl FnOnce(&[PlannedKernel], &Path) -> Vec<Round>) -> Result<Ran> {
    let workshop = Workshop::open(wanted.name)?;
    let is_direct = has_hardware_kvm();
    if !is_direct && !outer::is_here() {
        bail!(Missing(outer::QEMU.to_owned()));
    }
    let root = if is_direct {
        workshop.directory.clone()
    } else {
        PathBuf::from("/")
    };
    let place = root.join(PLACE);
    let mut files = Vec::new();
    let mut planned = Vec::new();
    for name in wanted.kernels {
        let kernel = workshop.kernel(name)?;
        planned.push(workshop.add_kernel(&kernel, &place, &mut files)?);
    }
    for program in workshop.suite_programs() {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        files.push((format!("{PLACE}/{name}"), programs::read_stripped(&program)?));
    }
    let e2fsck = workshop.target.join("guests/e2fsck/sbin/e2fsck.static");
    if e2fsck.is_file() {
        files.push((format!("{PLACE}/e2fsck"), fs::read(&e2fsck)?));
    }
    files.push((format!("{PLACE}/files.ext4"), workshop.file_system()?));
    let qemu_img = match QemuImg::find()? {
        Some(found) if is_direct => Some(found.command()),
        Some(found) if !wanted.kernels.is_empty() => {
            let parts = found.files()?.into_iter();
            files.extend(parts.map(|(name, content)| (format!("{PLACE}/{name}"), content)));
            Some(found.command_in(&place))
        }
        _ => None,
    };
    let report = workshop.directory.join("report.jsonl");
    let plan = Plan {
        report: if is_direct {
            report.clone()
        } else {
            PathBuf::from("/dev/ttyS1")
        },
        programs: place.clone(),
        e2fsck: e2fsck.is_file().then(|| place.join("e2fsck")),
        qemu_img,
        files_image: place.join("files.ext4"),
        work: if is_direct {
            workshop.directory.join("work")
        } else {
            PathBuf::from("/tmp/work")
        },
        one_at_a_time: !is_direct,
        rounds: rounds(&planned, &place),
    };
    let plan = serde_json::to_vec_pretty(&plan).context("the plan")?;
    fs::write(workshop.directory.join("plan.json"), &plan).context("cannot keep the plan")?;
    files.push((format!("{PLACE}/plan.json"), plan));
    let in_time = if is_direct {
        workshop.run_here(&files, wanted.limit)?
    } else {
        workshop.run_in_outer(wanted, files, &report)?
    };
    let cut_off = (!in_time).then_some(wanted.limit);
    Ran::collect(workshop.directory, &report, cut_off)
}

/// Whether `/dev/kvm` here is the hardware's, so that the suite runs directly: usable, and the processor has the
/// extensions.
#[must_use]
pub fn has_hardware_kvm() -> bool {
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = processor.split_whitespace();
    usable && flags.any(|flag| flag == "vmx" || flag == "svm")
}

/// A file of the outer root by its path.
type Placed = (String, Vec<u8>);

struct Workshop {
    target: PathBuf,
    directory: PathBuf,
    programs: PathBuf,
}

impl Workshop {
    fn open(name: &str) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the tests lie below the root")?;
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |target| root.join(target));
        let directory = target.join("guests/runs").join(name);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("cannot remove the last run");
            }
            _ => fs::create_dir_all(&directory).context("cannot make the run's directory")?,
        }
        Ok(Self {
            programs: programs::build(root, &target)?,
            target,
            directory,
        })
    }

    fn suite_programs(&self) -> [PathBuf; 4] {
        ["snapvm", "snaptool", "linux_suite", "vhost_caught"].map(|name| self.programs.join(name))
    }

    fn kernel(&self, name: &str) -> Result<Kernel> {
        let directory = self.target.join("guests").join(name);
        if !directory.is_dir() {
            bail!(Missing(format!("kernel {name}")));
        }
        Kernel::open(&directory)
    }

    /// Adds a kernel with an initramfs of the test guest.
    fn add_kernel(&self, kernel: &Kernel, place: &Path, files: &mut Vec<Placed>) -> Result<PlannedKernel> {
        let initrd = self.initramfs(kernel, INNER_MODULES, Vec::new())?;
        let at = |file: &str| format!("{PLACE}/{}-{file}", kernel.name);
        files.push((at("image"), fs::read(&kernel.image)?));
        files.push((at("initrd"), initrd));
        Ok(PlannedKernel {
            name: format!("{} ({})", kernel.name, kernel.package.trim()),
            image: place.join(format!("{}-image", kernel.name)),
            initrd: place.join(format!("{}-initrd", kernel.name)),
            knows_generation_id: kernel.knows_generation_id()?,
        })
    }

    /// An initramfs whose init is the test guest, with modules and further files.
    fn initramfs(&self, kernel: &Kernel, modules: &[&str], files: Vec<Placed>) -> Result<Vec<u8>> {
        let mut archive = Archive::new()?;
        archive.file(
            "init",
            &programs::read_stripped(&self.programs.join("linux-guest"))?,
        )?;
        archive.directory("modules")?;
        let mut list = String::new();
        for module in kernel.modules(modules)? {
            let path = format!("modules/{}", module.file);
            archive.file(&path, &module.bytes)?;
            let parameters = PARAMETERS.iter().find(|(file, _)| *file == module.file);
            let parameters = parameters.map_or("", |(_, parameters)| parameters);
            list.push_str(&format!("/{path}{parameters}\n"));
        }
        archive.file("modules/list", list.as_bytes())?;
        archive.directory(PLACE)?;
        for (path, content) in files {
            archive.file(&path, &content)?;
        }
        archive.finish()
    }

    /// An empty ext4 file system.
    fn file_system(&self) -> Result<Vec<u8>> {
        let image = self.directory.join("files.ext4");
        let mut search = std::env::var("PATH").unwrap_or_default();
        search.push_str(":/usr/sbin:/sbin");
        let made = Command::new("mke2fs")
            .env("PATH", search)
            .args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0"])
            .arg(&image)
            .arg(format!("{}K", FILE_SYSTEM_BYTES >> 10))
            .stdin(Stdio::null())
            .status()
            .context("cannot run mke2fs")?;
        ensure!(made.success(), "mke2fs: {made}");
        fs::read(&image).context("cannot read a file system")
    }

    fn run_here(&self, files: &[Placed], limit: Duration) -> Result<bool> {
        fs::create_dir_all(self.directory.join(PLACE)).context("cannot make the suite's directory")?;
        for (path, content) in files {
            let path = self.directory.join(path);
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let console = File::create(self.directory.join("console.log"))?;
        let suite = Command::new(self.directory.join(PLACE).join("linux_suite"))
            .arg(self.directory.join(PLACE).join("plan.json"))
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("cannot run the suite")?;
        outer::Running(suite).wait(limit)
    }

    fn run_in_outer(&self, wanted: &Wanted<'_>, files: Vec<Placed>, report: &Path) -> Result<bool> {
        let kernel = self.kernel(wanted.outer)?;
        let initrd = self.directory.join("outer-initrd");
        fs::write(&initrd, self.initramfs(&kernel, OUTER_MODULES, files)?)
            .context("cannot write an initramfs")?;
        let outputs = outer::Outputs {
            console: &self.directory.join("console.log"),
            report,
            qemu: &self.directory.join("qemu.log"),
        };
        let in_time = outer::run(&kernel.image, &initrd, &outputs, wanted.limit)?;
        fs::remove_file(&initrd).context("cannot remove an initramfs")?;
        Ok(in_time)
    }
}
