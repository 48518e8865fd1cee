//! A simple writer, a simple reader and a simple check, each independent of the code under test.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::format::{COMPRESSED, COPIED, HostCluster, L1Entry, L2Entry};
use crate::metadata::read_l1;
use crate::refcount::Refcounts;
use crate::snapshot_table::table_len_bytes;
use crate::walk::{self, MappingKind};
use crate::{ClusterSize, CreateOptions, MemoryStorage, Metadata, Storage, create, fields};

/// An image that tests write to one cluster at a time.
pub(super) struct TestImage {
    pub(super) metadata: Metadata,
}

/// What an image holds: the active disk and each snapshot, as digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) active: (u64, String),
    pub(super) snapshots: Vec<(String, u64, String)>,
}

/// What a check of the whole image finds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// References that are not counted, and structures that lie on one another.
    pub(super) corruptions: Vec<String>,
    /// Clusters that are counted more often than they are referred to.
    pub(super) leaks: u64,
    /// Entries of the active tree whose COPIED flag disagrees with the refcount.
    pub(super) copied: u64,
}

/// Options of a small image with clusters of `1 << cluster_bits` bytes.
pub(super) fn options(cluster_bits: u32, refcount_bits: u32, version: u32) -> CreateOptions {
    let mut options = CreateOptions::new(40 * ClusterSize::new(cluster_bits).expect("a size").bytes() * 4);
    options.cluster_bits = cluster_bits;
    options.refcount_bits = refcount_bits;
    options.version = version;
    options
}

impl TestImage {
    pub(super) fn new(options: &CreateOptions) -> Self {
        let storage = MemoryStorage::new();
        create(&storage, options).expect("a new image");
        Self::open(Arc::new(storage))
    }

    pub(super) fn open(storage: Arc<dyn Storage>) -> Self {
        Self {
            metadata: Metadata::open(storage).expect("an image"),
        }
    }

    pub(super) fn storage(&self) -> &dyn Storage {
        self.metadata.storage().as_ref()
    }

    /// The bytes of the whole file.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.storage().len().expect("length")).expect("small")];
        self.storage().read_at(&mut bytes, 0).expect("read");
        bytes
    }

    /// Fills a guest cluster with a byte.
    pub(super) fn write(&mut self, guest: u64, byte: u8) {
        self.write_all(guest..guest + 1, byte);
    }

    /// Fills a range of guest clusters with a byte.
    pub(super) fn write_all(&mut self, guests: std::ops::Range<u64>, byte: u8) {
        let size = self.metadata.cluster_size();
        self.edit(guests, |refcounts, storage, old| {
            let in_place = old.host_offset() != 0
                && !old.is_compressed()
                && refcounts.get(size.cluster_of(old.host_offset())).expect("count") == 1;
            let offset = if in_place {
                old.host_offset()
            } else {
                release(refcounts, old, size);
                refcounts.allocate(1).expect("room").offset(size)
            };
            storage.write_at(&vec![byte; size.len()], offset).expect("data");
            L2Entry::data(offset, true)
        });
    }

    /// Makes a guest cluster read as zeros, keeping its host cluster or not.
    pub(super) fn write_zeroes(&mut self, guest: u64, keep: bool) {
        let size = self.metadata.cluster_size();
        self.edit(guest..guest + 1, |refcounts, _, old| {
            if keep && !old.is_compressed() && old.host_offset() != 0 {
                return L2Entry(old.0 | 1);
            }
            release(refcounts, old, size);
            L2Entry::zero()
        });
    }

    /// Makes three guest clusters compressed ones in two host clusters; the one in the middle touches both.
    pub(super) fn write_compressed(&mut self, guest: u64, byte: u8) {
        let size = self.metadata.cluster_size();
        let mut refcounts = self.refcounts();
        let base = refcounts.allocate(2).expect("room");
        refcounts.add(base, 1).expect("a count");
        refcounts.add(HostCluster(base.0 + 1), 1).expect("a count");
        refcounts.write_dirty(&mut self.metadata.header).expect("written");
        let offset = base.offset(size);
        self.storage()
            .write_at(&vec![byte; 2 * size.len()], offset)
            .expect("data");
        let third = size.bytes() * 2 / 3;
        let mut next = offset;
        self.edit(guest..guest + 3, |refcounts, _, old| {
            release(refcounts, old, size);
            let end = next + third - 1;
            let sectors = end / 512 - next / 512;
            let entry = L2Entry(COMPRESSED | (sectors << (70 - size.bits())) | next);
            next += third;
            entry
        });
    }

    /// Changes the entries of a range of guest clusters, after the L2 tables have been made the active tree's own.
    fn edit(
        &mut self,
        guests: std::ops::Range<u64>,
        mut new: impl FnMut(&mut Refcounts, &dyn Storage, L2Entry) -> L2Entry,
    ) {
        let size = self.metadata.cluster_size();
        let storage = Arc::clone(self.metadata.storage());
        let mut refcounts = self.refcounts();
        for guest in guests {
            let (l1, l2) = (guest / size.l2_entries(), guest % size.l2_entries());
            let slot = &mut self.metadata.l1[usize::try_from(l1).expect("small")];
            *slot = own_table(*slot, &mut refcounts, storage.as_ref(), size);
            let at = slot.host_offset() + l2 * 8;
            let mut bytes = [0; 8];
            storage.read_at(&mut bytes, at).expect("an entry");
            let entry = new(
                &mut refcounts,
                storage.as_ref(),
                L2Entry(u64::from_be_bytes(bytes)),
            );
            storage.write_at(&entry.0.to_be_bytes(), at).expect("an entry");
        }
        let bytes = fields::entry_bytes(self.metadata.l1.iter().map(|entry| entry.0));
        storage
            .write_at(&bytes, self.metadata.header.l1_offset)
            .expect("the l1 table");
        refcounts
            .write_dirty(&mut self.metadata.header)
            .expect("the refcounts");
    }

    pub(super) fn refcounts(&self) -> Refcounts {
        Refcounts::open(Arc::clone(self.metadata.storage()), &self.metadata.header).expect("refcounts")
    }

    /// What the image holds now.
    pub(super) fn state(&self) -> State {
        let header = &self.metadata.header;
        let size = header.cluster_size;
        let snapshot = |entry: &crate::SnapshotEntry| {
            let l1 = read_l1(self.storage(), size, entry.l1_offset, entry.l1_entries).expect("an l1 table");
            let bytes = entry.virtual_size_bytes().unwrap_or(header.virtual_size_bytes);
            (entry.id().into_owned(), bytes, content(self.storage(), size, &l1))
        };
        State {
            active: (
                header.virtual_size_bytes,
                content(self.storage(), size, &self.metadata.l1),
            ),
            snapshots: self.metadata.snapshots.iter().map(snapshot).collect(),
        }
    }

    /// Counts every reference and compares with the refcounts.
    pub(super) fn check(&self) -> Verdict {
        let header = &self.metadata.header;
        let size = header.cluster_size;
        let mut references = References {
            counts: BTreeMap::new(),
            size,
        };
        references.add(0, size.bytes());
        references.add(
            header.refcount_table_offset,
            u64::from(header.refcount_table_clusters) * size.bytes(),
        );
        let mut table = vec![0; header.refcount_table_clusters as usize * size.len()];
        self.storage()
            .read_at(&mut table, header.refcount_table_offset)
            .expect("the refcount table");
        fields::entries(&table)
            .filter(|block| *block != 0)
            .for_each(|block| references.add(block, size.bytes()));
        references.add(header.l1_offset, u64::from(header.l1_entries) * 8);
        references.add(header.snapshots_offset, table_len_bytes(&self.metadata.snapshots));
        references.add_tree(self.storage(), &self.metadata.l1);
        for entry in &self.metadata.snapshots {
            references.add(entry.l1_offset, entry.l1_bytes());
            let l1 = read_l1(self.storage(), size, entry.l1_offset, entry.l1_entries).expect("an l1 table");
            references.add_tree(self.storage(), &l1);
        }
        // Nothing is counted far beyond the end of the file.
        let end = size.clusters_for(self.storage().len().expect("length")) + 1000;
        let mut verdict = references.compare(&mut self.refcounts(), end);
        verdict.copied = self.wrong_flags();
        verdict
    }

    fn wrong_flags(&self) -> u64 {
        let size = self.metadata.cluster_size();
        let mut refcounts = self.refcounts();
        let mut wrong = 0;
        let mut judge = |offset: u64, copied: bool| {
            let single = refcounts.get(size.cluster_of(offset)).expect("a count") == 1;
            wrong += u64::from(offset != 0 && single != copied);
        };
        self.metadata
            .l1
            .iter()
            .for_each(|entry| judge(entry.host_offset(), entry.is_copied()));
        walk::tables(self.storage(), size, &self.metadata.l1, &mut |_, table| {
            let plain = table.entries().filter(|entry| !entry.is_compressed());
            plain.for_each(|entry| judge(entry.host_offset(), entry.0 & COPIED != 0));
            Ok(())
        })
        .expect("the active tree");
        wrong
    }
}

/// An L2 table that only the active tree refers to: the same, a copy, or an empty one.
fn own_table(slot: L1Entry, refcounts: &mut Refcounts, storage: &dyn Storage, size: ClusterSize) -> L1Entry {
    let mut table = vec![0; size.len()];
    if !slot.is_unallocated() {
        let cluster = size.cluster_of(slot.host_offset());
        if refcounts.get(cluster).expect("a count") == 1 {
            return slot.with_copied(true);
        }
        storage
            .read_at(&mut table, slot.host_offset())
            .expect("the table");
        refcounts.sub(cluster, 1).expect("a count");
    }
    let offset = refcounts.allocate(1).expect("room").offset(size);
    storage.write_at(&table, offset).expect("the table");
    L1Entry::new(offset, true)
}

/// Drops the references of an entry.
fn release(refcounts: &mut Refcounts, entry: L2Entry, size: ClusterSize) {
    let clusters = match entry.compressed(size.bits()) {
        Some(compressed) => compressed.clusters(size),
        None if entry.host_offset() == 0 => return,
        None => {
            let HostCluster(number) = size.cluster_of(entry.host_offset());
            number..=number
        }
    };
    for number in clusters {
        refcounts.sub(HostCluster(number), 1).expect("a count");
    }
}

/// A digest of everything that a tree maps: positions and bytes.
fn content(storage: &dyn Storage, size: ClusterSize, l1: &[L1Entry]) -> String {
    let mut text = String::new();
    walk::walk(storage, size, l1, u64::MAX, &mut |mapping| {
        let bytes = |host: u64, len: u64| {
            let mut bytes = vec![0; usize::try_from(len).expect("small")];
            storage.read_at(&mut bytes, host).expect("data");
            blake3::hash(&bytes)
        };
        match mapping.kind {
            MappingKind::Unallocated => {}
            MappingKind::Zero { .. } => writeln!(text, "{} zero", mapping.guest).expect("text"),
            MappingKind::Data { host } => {
                writeln!(text, "{} {}", mapping.guest, bytes(host, size.bytes())).expect("text");
            }
            MappingKind::Compressed { host, len } => {
                writeln!(text, "{} compressed {}", mapping.guest, bytes(host, len)).expect("text");
            }
        }
        Ok(())
    })
    .expect("a tree");
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// How often each cluster is referred to, and by what.
struct References {
    counts: BTreeMap<u64, u64>,
    size: ClusterSize,
}

impl References {
    fn add(&mut self, offset: u64, len: u64) {
        assert!(
            len == 0 || self.size.is_aligned(offset),
            "a structure at {offset:#x}"
        );
        let HostCluster(first) = self.size.cluster_of(offset);
        (first..first + self.size.clusters_for(len))
            .for_each(|number| *self.counts.entry(number).or_default() += 1);
    }

    fn add_tree(&mut self, storage: &dyn Storage, l1: &[L1Entry]) {
        let size = self.size;
        walk::tables(storage, size, l1, &mut |_, table| {
            self.add(table.offset(), size.bytes());
            for entry in table.entries() {
                match entry.compressed(size.bits()) {
                    Some(compressed) => {
                        compressed
                            .clusters(size)
                            .for_each(|number| *self.counts.entry(number).or_default() += 1);
                    }
                    None if entry.host_offset() != 0 => self.add(entry.host_offset(), size.bytes()),
                    None => {}
                }
            }
            Ok(())
        })
        .expect("a tree");
    }

    fn compare(&self, refcounts: &mut Refcounts, end: u64) -> Verdict {
        let mut verdict = Verdict::default();
        for number in 0..end {
            let counted = refcounts.get(HostCluster(number)).expect("a count");
            let referred = self.counts.get(&number).copied().unwrap_or(0);
            if counted < referred {
                verdict.corruptions.push(format!(
                    "cluster {number}: refcount {counted}, {referred} references"
                ));
            }
            verdict.leaks += u64::from(counted > referred);
        }
        if let Some(number) = self.counts.range(end..).next() {
            verdict
                .corruptions
                .push(format!("cluster {number:?} is beyond the file"));
        }
        verdict
    }
}
