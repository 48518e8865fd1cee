//! The states that a crash can leave, rebuilt from the events.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::{fs, io};

use super::disk::Disk;
use super::random::Random;
use super::{DirectoryChange, Event};
use crate::storage::MemoryStorage;

/// What the medium writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// What a killed process's write is cut at: the kernel copies page by page.
const PAGE_BYTES: usize = 4096;

/// The files as a crash leaves them.
#[derive(Debug, Clone)]
pub struct Crash {
    description: String,
    marks: Vec<String>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Crash {
    /// Which crash it is, for messages.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The facts that the test noted before the crash.
    pub fn marks(&self) -> &[String] {
        &self.marks
    }

    /// The names in the directory.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The content of the file with a name.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// The file with a name, ready to be opened and repaired.
    pub fn storage(&self, name: &str) -> Option<MemoryStorage> {
        self.files.get(name).cloned().map(MemoryStorage::from_bytes)
    }

    /// Writes every file into a directory, for tools that want real files.
    ///
    /// # Errors
    /// Those of writing the files.
    pub fn write_to(&self, directory: &Path) -> io::Result<()> {
        self.files
            .iter()
            .try_for_each(|(name, content)| fs::write(directory.join(name), content))
    }

    fn new(disk: &Disk, description: String, events: &[Event]) -> Self {
        let mark = |event: &Event| match event {
            Event::Mark(fact) => Some(fact.clone()),
            _ => None,
        };
        Self {
            description,
            marks: events.iter().filter_map(mark).collect(),
            files: disk.named_contents(),
        }
    }
}

/// The state after every prefix, and one within each write that spans pages.
pub(super) fn kills(before: Disk, events: Vec<Event>) -> impl Iterator<Item = Crash> {
    let mut disk = before;
    (0..=events.len()).flat_map(move |after| {
        let (done, rest) = events.split_at(after);
        if let Some(last) = done.last() {
            disk.apply(last);
        }
        let whole = Crash::new(&disk, format!("killed after event {after}"), done);
        let cut = rest
            .first()
            .and_then(|event| cut_at_a_page(event).map(|range| (event, range)))
            .map(|(event, range)| {
                let mut torn = disk.clone();
                let description = format!("killed {} bytes into the write of event {}", range.end, after + 1);
                torn.apply_part(event, range);
                Crash::new(&torn, description, done)
            });
        [Some(whole), cut].into_iter().flatten()
    })
}

/// The first half of a write, cut where a page of the file ends; `None` if the write lies within one page.
fn cut_at_a_page(event: &Event) -> Option<Range<usize>> {
    let Event::Write { offset, data, .. } = event else {
        return None;
    };
    let within_page = usize::try_from(offset % PAGE_BYTES as u64).ok()?;
    let pages = (within_page + data.len()) / PAGE_BYTES;
    let end = (pages.div_ceil(2) * PAGE_BYTES).checked_sub(within_page)?;
    (end > 0 && end < data.len()).then_some(0..end)
}

/// Samples of the states between each two syncs.
pub(super) fn power_losses(
    before: Disk,
    events: Vec<Event>,
    seed: u64,
    per_sync: usize,
) -> impl Iterator<Item = Crash> {
    let mut random = Random::new(seed);
    let stretches = stretches(&events);
    let samples = stretches
        .into_iter()
        .flat_map(move |stretch| (0..per_sync).map(move |sample| (stretch.clone(), sample)));
    let mut durable = Durable::new(before);
    samples.map(move |(stretch, sample)| {
        durable.advance(&events[..stretch.start]);
        // The end of a stretch has the most to lose; every other sample stops somewhere on the way there.
        let way = if sample % 2 == 0 {
            stretch.len()
        } else {
            random.index(stretch.len() + 1)
        };
        let after = stretch.start + way;
        let loss = Loss::choose(&mut random);
        let disk = durable.lose(&events[stretch.start..after], loss, &mut random);
        Crash::new(
            &disk,
            format!("power lost after event {after}, {loss:?}, sample {sample}, seed {seed:#x}"),
            &events[..after],
        )
    })
}

/// The events between two syncs: from behind a sync up to the next one, or the end.
fn stretches(events: &[Event]) -> Vec<Range<usize>> {
    let mut stretches = Vec::new();
    let mut start = 0;
    for (index, event) in events.iter().enumerate() {
        if matches!(event, Event::Sync { .. } | Event::SyncDirectory) {
            stretches.push(start..index);
            start = index + 1;
        }
    }
    stretches.push(start..events.len());
    stretches
}

/// How much of what was not synced is lost.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Everything,
    Writes,
    Sectors,
    AllButOneWrite,
    OneWrite,
}

impl Loss {
    fn choose(random: &mut Random) -> Self {
        const CHOICES: [Loss; 8] = [
            Loss::Everything,
            Loss::Writes,
            Loss::Writes,
            Loss::Sectors,
            Loss::Sectors,
            Loss::Sectors,
            Loss::AllButOneWrite,
            Loss::OneWrite,
        ];
        CHOICES[random.index(CHOICES.len())]
    }
}

/// What is on the medium for certain, and the events that may or may not be.
#[derive(Debug)]
struct Durable {
    disk: Disk,
    pending: Vec<Event>,
    directory: Vec<DirectoryChange>,
    applied: usize,
}

impl Durable {
    fn new(disk: Disk) -> Self {
        Self {
            disk,
            pending: Vec::new(),
            directory: Vec::new(),
            applied: 0,
        }
    }

    /// Takes in the events from where the last call ended.
    fn advance(&mut self, events: &[Event]) {
        for event in events.get(self.applied..).unwrap_or_default() {
            match event {
                Event::Sync { file: synced } => self.settle(*synced),
                Event::SyncDirectory => {
                    for change in std::mem::take(&mut self.directory) {
                        self.disk.change_directory(&change);
                    }
                }
                Event::Directory(change) => self.directory.push(change.clone()),
                Event::Mark(_) => {}
                other => self.pending.push(other.clone()),
            }
        }
        self.applied = self.applied.max(events.len());
    }

    /// Makes the pending events of one file durable.
    fn settle(&mut self, synced: super::FileNumber) {
        let (done, kept) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|event| file_of(event) == Some(synced));
        self.pending = kept;
        let done: Vec<Event> = done;
        done.iter().for_each(|event| self.disk.apply(event));
    }

    /// The medium after a power loss, when `stretch` came after what was taken in.
    fn lose(&self, stretch: &[Event], loss: Loss, random: &mut Random) -> Disk {
        let mut disk = self.disk.clone();
        let changes: Vec<&Event> = self
            .pending
            .iter()
            .chain(stretch.iter().filter(|event| file_of(event).is_some()))
            .collect();
        let chosen = random.index(changes.len());
        for (index, event) in changes.into_iter().enumerate() {
            match loss {
                Loss::Everything => {}
                Loss::Writes if random.one_in(2) => disk.apply(event),
                Loss::AllButOneWrite if index == chosen => disk.apply(event),
                Loss::OneWrite if index != chosen => disk.apply(event),
                Loss::Sectors => keep_sectors(&mut disk, event, random),
                _ => {}
            }
        }
        let fresh = stretch.iter().filter_map(|event| match event {
            Event::Directory(change) => Some(change),
            _ => None,
        });
        let changes: Vec<&DirectoryChange> = self.directory.iter().chain(fresh).collect();
        let kept = random.index(changes.len() + 1);
        changes
            .into_iter()
            .take(kept)
            .for_each(|change| disk.change_directory(change));
        disk
    }
}

/// Keeps each sector of a write with even chance, and any other event whole or not.
fn keep_sectors(disk: &mut Disk, event: &Event, random: &mut Random) {
    let Event::Write { offset, data, .. } = event else {
        if random.one_in(2) {
            disk.apply(event);
        }
        return;
    };
    let mut start = 0;
    let within_sector = usize::try_from(offset % SECTOR_BYTES as u64).unwrap_or(0);
    let mut end = SECTOR_BYTES - within_sector;
    while start < data.len() {
        end = end.min(data.len());
        if random.one_in(2) {
            disk.apply_part(event, start..end);
        }
        (start, end) = (end, end + SECTOR_BYTES);
    }
}

/// The file whose content an event changes.
fn file_of(event: &Event) -> Option<super::FileNumber> {
    match event {
        Event::Write { file, .. } | Event::SetLen { file, .. } | Event::Punch { file, .. } => Some(*file),
        Event::Sync { .. } | Event::Directory(_) | Event::SyncDirectory | Event::Mark(_) => None,
    }
}
