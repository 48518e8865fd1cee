//! Saving a running machine: the order of pause, memory, state, resume and commit.
//!
//! What makes the snapshot one instant is the order: all vCPUs and devices are parked, their state is read, memory
//! is frozen, and only then anything runs again. Reading state comes before freezing because it may itself write
//! guest memory. What keeps the pause short is everything that is *not* between the two: the file is created before
//! memory is armed, memory is armed while the guest runs, and encoding, index, fsync and rename come after the
//! resume, on the caller's thread, under no lock that a vCPU needs. Devices complete their requests before the vCPUs
//! are parked. Disks are switched to overlays as the last thing inside the pause, and made durable beside memory.
//!
//! Every way out of an error passes through the destructors: the hold lets the guest run on if its user wants that,
//! the capture lifts its protection, discards take their usual way, output, overlays and disk copies remove their
//! temporary files. What is not undone is a switch to an overlay, and the error says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use memsnap::{Capture, CaptureOptions, CaptureReport, memory_map, stop_and_copy};
use snapfile::{Writer, WriterOptions};

use crate::control::{Phase, SaveControl, micros};
use crate::discards::Diversion;
use crate::disk::{
    DiskPlan, DiskTable, DiskWishes, DisksAtPoint, DisksMode, KeptDisk, KnownFingerprints, PointFigures,
    SnapshotIdentity, keep_beside, publish,
};
use crate::error::{Error, Result};
use crate::machine_record::MachineRecord;
use crate::output::Output;
use crate::parent::open_parent;
use crate::report::{CaptureFigures, DiskFigures, SaveMode, SaveReport, SavedDisk, Statistics};
use crate::run_switch::Hold;
use crate::sections::{Provenance, machine_section, provenance_section, state_sections, statistics_section};
use crate::subject::Subject;

/// How a snapshot is taken and written.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    /// Whether the guest runs while its memory is written.
    pub mode: SaveMode,
    /// How memory is captured; the control in it is not used, see [`SaveControl`].
    pub capture: CaptureOptions,
    /// How the file is written; a parent in it takes precedence over `parent`.
    pub writer: WriterOptions,
    /// How the disks that the guest can write are kept.
    pub disks: DisksMode,
    /// Names of frozen images by disk, for disks that are kept by an overlay; others get one that goes with `path`.
    pub frozen: BTreeMap<String, PathBuf>,
    /// Fingerprints of layers that were read before; what is read is added.
    pub fingerprints: KnownFingerprints,
    /// Snapshot file whose equal chunks are not stored again.
    pub parent: Option<PathBuf>,
    /// Name of the machine, kept in the file.
    pub vm_name: String,
    /// Free-form labels, kept in the file.
    pub labels: BTreeMap<String, String>,
}

/// Saves the whole machine into a new file at `path`, as of one instant close to this call.
///
/// The machine keeps running, or stays paused if a user had paused it. Until the file is complete and durable,
/// nothing is seen under its name; an existing file is replaced at that moment.
///
/// # Errors
/// Whatever goes wrong, and a cancel as well, leaves the machine as it was and no file behind, but for overlays that
/// its disks were switched to already: [`Error::LeftOverlays`] names them.
/// [`Error::kind`] tells a cancel and a snapshot given up under pressure from failures.
pub fn save<S: Subject>(
    machine: &S,
    path: impl AsRef<Path>,
    options: &SaveOptions,
    control: &SaveControl,
) -> Result<SaveReport> {
    let result = Save::create(machine, path.as_ref(), options, control).and_then(|save| {
        let left = save.disks.left();
        left.tell(save.run())
    });
    control.finish();
    result
}

/// A save whose output file exists under its temporary name.
struct Save<'a, S: Subject> {
    machine: &'a S,
    path: &'a Path,
    options: &'a SaveOptions,
    control: &'a SaveControl,
    writer: Writer<Output>,
    disks: DiskPlan,
    began: Instant,
}

/// The capture point: state and clock of that instant, and what reaching it cost.
struct CapturePoint<T> {
    at: Instant,
    wall_clock: SystemTime,
    state: T,
    was_paused: bool,
    drain: Duration,
    park: Duration,
    save_state: Duration,
}

/// A captured memory with the statistics that belong to it.
struct Captured<T> {
    point: CapturePoint<T>,
    downtime: Duration,
    freeze: Duration,
    resume: Duration,
    report: CaptureReport,
    disks: Vec<KeptDisk>,
    disks_at_point: PointFigures,
}

impl<'a, S: Subject> Save<'a, S> {
    fn create(
        machine: &'a S,
        path: &'a Path,
        options: &'a SaveOptions,
        control: &'a SaveControl,
    ) -> Result<Self> {
        let began = control.begin();
        let failed = Error::write(path);
        let mut writer_options = options.writer.clone();
        if let (None, Some(parent)) = (&writer_options.parent, &options.parent) {
            writer_options.parent = Some(open_parent(parent, path)?);
        }
        let map = memory_map(machine.memory())?;
        let output = Output::create(path, control.file_bytes()).map_err(failed)?;
        let writer = Writer::new(output, &map, writer_options).map_err(failed)?;
        control.set_total(map.len_bytes(), writer.layout().chunk_count());
        let wishes = DiskWishes {
            snapshot: SnapshotIdentity {
                path,
                file_id: writer.header().file_id.0,
            },
            mode: options.disks,
            frozen: &options.frozen,
        };
        let disks = DiskPlan::prepare(machine.disks(), &wishes)?;
        Ok(Self {
            machine,
            path,
            options,
            control,
            writer,
            disks,
            began,
        })
    }

    fn run(mut self) -> Result<SaveReport> {
        let route = self.machine.discard_route();
        let diversion = route.map(|route| Diversion::set_up(route, &self.control.capture()));
        let captured = match self.options.mode {
            SaveMode::Async => self.capture_running()?,
            SaveMode::Stop => self.capture_stopped()?,
        };
        drop(diversion);
        self.commit(captured)
    }

    /// Memory is protected while the guest runs, and copied on write after the capture point.
    fn capture_running(&mut self) -> Result<Captured<S::State>> {
        self.control.enter(Phase::Arming)?;
        let layout = self.writer.layout().clone();
        let disks = std::mem::take(&mut self.disks);
        let mut capture = Capture::arm(self.machine.memory(), layout, self.capture_options())
            .map_err(|error| self.memory_error(error))?;
        self.control.enter(Phase::Held)?;
        let hold = self.control.switch().hold(self.machine)?;
        let point = self.reach_point(&hold)?;
        let held_since = hold.since;
        let freezing = Instant::now();
        capture.freeze().map_err(|error| self.memory_error(error))?;
        let freeze = freezing.elapsed();
        let disks = disks.reach_point()?;
        let disks_at_point = disks.figures();
        let resuming = Instant::now();
        hold.release()?;
        let (resume, downtime) = (resuming.elapsed(), held_since.elapsed());
        self.control.enter(Phase::Draining)?;
        let (report, disks) = self.keep_beside(disks, || {
            capture
                .drain(&self.writer)
                .map_err(|error| self.memory_error(error))
        })?;
        Ok(Captured {
            point,
            downtime,
            freeze,
            resume,
            report,
            disks,
            disks_at_point,
        })
    }

    /// The guest is held until all of its memory is in the file.
    fn capture_stopped(&mut self) -> Result<Captured<S::State>> {
        self.control.enter(Phase::Held)?;
        let disks = std::mem::take(&mut self.disks);
        let hold = self.control.switch().hold(self.machine)?;
        let point = self.reach_point(&hold)?;
        let held_since = hold.since;
        let disks = disks.reach_point()?;
        let disks_at_point = disks.figures();
        self.control.enter(Phase::Draining)?;
        let layout = self.writer.layout().clone();
        let ((report, resume, downtime), disks) = self.keep_beside(disks, || {
            let memory = self.machine.memory();
            let report = stop_and_copy(memory, layout, self.capture_options(), &self.writer)
                .map_err(|error| self.memory_error(error))?;
            let resuming = Instant::now();
            hold.release()?;
            Ok((report, resuming.elapsed(), held_since.elapsed()))
        })?;
        Ok(Captured {
            point,
            downtime,
            freeze: Duration::ZERO,
            resume,
            report,
            disks,
            disks_at_point,
        })
    }

    /// Makes the disks durable while memory is written.
    fn keep_beside<T>(
        &self,
        disks: DisksAtPoint,
        memory: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Vec<KeptDisk>)> {
        let known = &self.options.fingerprints;
        keep_beside(disks, self.path, known, self.control, memory)
    }

    /// Reads the state of the machine, which is held.
    fn reach_point(&self, hold: &Hold<'_, S>) -> Result<CapturePoint<S::State>> {
        let at = Instant::now();
        let state = self.machine.save_state()?;
        let save_state = at.elapsed();
        Ok(CapturePoint {
            at,
            wall_clock: SystemTime::now(),
            state,
            was_paused: !hold.was_running(),
            drain: hold.drain,
            park: hold.park,
            save_state,
        })
    }

    /// Writes what goes behind memory, and makes the file durable under its name.
    fn commit(self, captured: Captured<S::State>) -> Result<SaveReport> {
        self.control.enter(Phase::Committing)?;
        let failed = Error::write(self.path);
        let statistics = self.statistics(&captured);
        let (table, record) = self.describe(&captured.disks);
        let mut sections = state_sections(S::encode(&captured.point.state)?, &table)?;
        sections.push(machine_section(&record)?);
        sections.push(provenance_section(&self.provenance(&captured.point))?);
        sections.push(statistics_section(&statistics)?);
        for section in &sections {
            self.writer.put_section(section).map_err(failed)?;
        }
        let committing = Instant::now();
        let (output, summary) = self.writer.finish().map_err(failed)?;
        output.sync().map_err(failed)?;
        // The last moment at which a cancel is heeded: behind it, the files have their names.
        self.control.enter(Phase::Committing)?;
        let saved = captured.disks.iter().map(SavedDisk::of).collect();
        let published = publish(captured.disks)?;
        output.commit().map_err(failed)?;
        published.keep();
        Ok(SaveReport::new(
            statistics,
            saved,
            &summary,
            committing.elapsed(),
            self.began.elapsed(),
        ))
    }

    /// The disk table, and the record of the machine.
    fn describe(&self, disks: &[KeptDisk]) -> (DiskTable, MachineRecord) {
        let table = DiskTable {
            disks: disks.iter().map(|disk| disk.entry.clone()).collect(),
        };
        let layers = disks.iter().filter(|disk| !disk.layers.is_empty());
        let layers = layers.map(|disk| (disk.entry.id.clone(), disk.layers.clone()));
        let record = MachineRecord {
            disk_layers: layers.collect(),
            ..self.machine.record()
        };
        (table, record)
    }

    fn statistics(&self, captured: &Captured<S::State>) -> Statistics {
        let Captured {
            point,
            downtime,
            freeze,
            resume,
            report,
            disks,
            disks_at_point,
        } = captured;
        let unless_paused = |time: Duration| if point.was_paused { 0 } else { micros(time) };
        Statistics {
            mode: self.options.mode,
            was_paused: point.was_paused,
            command_to_capture_point_us: micros(point.at.duration_since(self.began)),
            downtime_us: unless_paused(*downtime),
            drain_us: unless_paused(point.drain),
            park_us: unless_paused(point.park),
            state_us: micros(point.save_state),
            freeze_us: micros(*freeze),
            resume_us: unless_paused(*resume),
            capture: CaptureFigures::from(report),
            disks: DiskFigures::of(disks, disks_at_point),
        }
    }

    fn provenance(&self, point: &CapturePoint<S::State>) -> Provenance {
        Provenance {
            labels: self.options.labels.clone(),
            ..Provenance::new(
                point.wall_clock,
                &self.options.vm_name,
                &self.options.writer.producer,
            )
        }
    }

    fn capture_options(&self) -> CaptureOptions {
        CaptureOptions {
            control: self.control.capture(),
            ..self.options.capture.clone()
        }
    }

    /// A cancel is no failure; a chunk that the file did not take is one of the file, not of memory.
    fn memory_error(&self, error: memsnap::Error) -> Error {
        match error {
            memsnap::Error::Cancelled => Error::Cancelled,
            memsnap::Error::Sink(source) => match source.downcast::<snapfile::Error>() {
                Ok(source) => Error::write(self.path)(*source),
                Err(source) => Error::Memory(memsnap::Error::Sink(source)),
            },
            error => Error::Memory(error),
        }
    }
}
