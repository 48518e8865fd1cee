//! Snapshots and their cost as facts for people.

use snapshot::{DEPTH_TO_FLATTEN, DisksMode, SaveReport};

use crate::api::{GuestStatus, SnapshotState, SnapshotStatus};
use crate::output::{Facts, human_bytes, human_us};
use crate::progress::phase_text;

/// Adds how a snapshot stands, and what it cost once it is complete.
pub fn add_status(facts: &mut Facts, snapshot: &SnapshotStatus) {
    facts.add(
        "snapshot",
        format!("{} ({})", snapshot.path.display(), snapshot.state),
    );
    if snapshot.state == SnapshotState::Running {
        let progress = &snapshot.progress;
        facts.add("phase", phase_text(progress.phase));
        facts.add(
            "progress",
            format!("{} of {} chunks", progress.chunks_done, progress.chunks_total),
        );
        if progress.disk_bytes_total > 0 {
            facts.add(
                "disks so far",
                format!(
                    "{} of {}",
                    human_bytes(progress.disk_bytes),
                    human_bytes(progress.disk_bytes_total)
                ),
            );
        }
        facts.add("file so far", human_bytes(progress.file_bytes));
    }
    if let Some(error) = &snapshot.error {
        facts.add("because", error);
    }
    if let Some(report) = &snapshot.report {
        add_report(facts, report);
    }
}

/// Adds what a complete snapshot is and what it cost.
pub fn add_report(facts: &mut Facts, report: &SaveReport) {
    let statistics = &report.statistics;
    let capture = &statistics.capture;
    facts.add("root digest", &report.root_digest);
    facts.add("command to T", human_us(statistics.command_to_capture_point_us));
    if statistics.was_paused {
        facts.add("downtime", "none: the guest was paused already");
    } else {
        facts.add(
            "downtime",
            format!(
                "{} (park {}, state {}, freeze {}, resume {})",
                human_us(statistics.downtime_us),
                human_us(statistics.park_us),
                human_us(statistics.state_us),
                human_us(statistics.freeze_us),
                human_us(statistics.resume_us),
            ),
        );
    }
    if statistics.drain_us > 0 {
        facts.add(
            "devices drained",
            format!("{} before that", human_us(statistics.drain_us)),
        );
    }
    add_disks(facts, report);
    facts.add("total", human_us(report.total_us));
    facts.add("memory", human_bytes(capture.memory_bytes));
    facts.add(
        "file",
        format!(
            "{} ({})",
            human_bytes(report.file_bytes),
            ratio(capture.memory_bytes, report)
        ),
    );
    if capture.faults_draining > 0 {
        let stall = &capture.stall_draining;
        facts.add(
            "copied on write",
            format!(
                "{} in {} faults",
                human_bytes(capture.copied_bytes),
                capture.faults_draining
            ),
        );
        facts.add(
            "guest waited",
            format!(
                "p50 {}, p99 {}, max {} per fault",
                human_us(stall.p50_us),
                human_us(stall.p99_us),
                human_us(stall.max_us)
            ),
        );
        facts.add("buffers at most", human_bytes(capture.buffer_high_water_bytes));
    }
}

/// Adds what was done with the disks, and what that cost.
fn add_disks(facts: &mut Facts, report: &SaveReport) {
    let cost = &report.statistics.disks;
    for disk in &report.disks {
        let file = disk.file.as_ref().map(|file| file.display().to_string());
        let file = file.unwrap_or_default();
        let text = match disk.mode {
            DisksMode::Overlay => format!("frozen as {file}"),
            DisksMode::Internal => {
                format!(
                    "internal snapshot {} in {file}",
                    disk.internal.as_deref().unwrap_or_default()
                )
            }
            DisksMode::Copy => format!("copied to {file}"),
            DisksMode::None => "only recorded".to_owned(),
        };
        facts.add("disk", format!("{}: {text}", disk.id));
        if disk.depth > DEPTH_TO_FLATTEN {
            facts.add(
                "warning",
                format!(
                    "disk {} consists of {} files: `snapvm disk flatten`",
                    disk.id, disk.depth
                ),
            );
        }
    }
    let times = [
        ("switched in", cost.switch_us),
        ("internal in", cost.internal_us),
        ("durable after", cost.settle_us),
        ("fingerprints after", cost.fingerprint_us),
        ("held", cost.hold_us),
        ("copied in", cost.copy_us),
    ];
    let times = times.iter().filter(|(_, us)| *us > 0);
    let times: Vec<_> = times
        .map(|(what, us)| format!("{what} {}", human_us(*us)))
        .collect();
    if cost.count > 0 {
        facts.add("disks", times.join(", "));
    }
}

/// Adds what the built-in guest has done.
pub fn add_guest(facts: &mut Facts, guest: &GuestStatus) {
    facts.add("guest steps", guest.steps);
    facts.add("longest gap", human_us(guest.longest_gap_us));
    if guest.bad_stamps > 0 {
        facts.add("BAD pages", guest.bad_stamps);
    }
}

fn ratio(memory_bytes: u64, report: &SaveReport) -> String {
    let tenths = (memory_bytes * 10).checked_div(report.file_bytes).unwrap_or(0);
    format!("{}.{}:1", tenths / 10, tenths % 10)
}
