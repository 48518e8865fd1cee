use super::*;
use crate::format::{COMPRESSED, ZERO};
use crate::{Error, MemoryStorage};

const MIB: u64 = 1 << 20;

/// Clusters of 512 bytes: an L2 table has 64 entries and maps 32 KiB.
fn cluster() -> ClusterSize {
    ClusterSize::new(9).expect("size")
}

/// A file with L2 tables of these first entries, one after the other from 4096 on, and the L1 table for them.
fn file(tables: &[&[u64]]) -> (MemoryStorage, Vec<L1Entry>) {
    let storage = MemoryStorage::new();
    let mut l1 = Vec::new();
    for (number, entries) in tables.iter().enumerate() {
        let offset = 4096 + number as u64 * 512;
        let mut table = entries.to_vec();
        table.resize(64, 0);
        storage
            .write_at(&fields::entry_bytes(table), offset)
            .expect("write");
        l1.push(L1Entry::new(offset, true));
    }
    (storage, l1)
}

fn walked(storage: &MemoryStorage, l1: &[L1Entry], end: u64) -> Result<Vec<(u64, u64, MappingKind)>> {
    let mut seen = Vec::new();
    walk(storage, cluster(), l1, end, &mut |mapping| {
        seen.push((mapping.guest, mapping.len, mapping.kind));
        Ok(())
    })?;
    Ok(seen)
}

#[test]
fn what_is_mapped_comes_cluster_by_cluster_and_the_rest_in_runs() {
    let (storage, mut l1) = file(&[
        &[0, MIB, (MIB + 512) | ZERO, ZERO],
        &[0, 0, COMPRESSED | (MIB + 100)],
    ]);
    l1.insert(1, L1Entry::default());
    let seen = walked(&storage, &l1, 100_000).expect("walk");
    let nothing = MappingKind::Unallocated;
    let packed = MappingKind::Compressed {
        host: MIB + 100,
        len: 412,
    };
    assert_eq!(
        seen,
        [
            (0, 512, nothing),
            (512, 512, MappingKind::Data { host: MIB }),
            (
                1024,
                512,
                MappingKind::Zero {
                    host: Some(MIB + 512)
                }
            ),
            (1536, 512, MappingKind::Zero { host: None }),
            (2048, 30_720, nothing),
            (32_768, 32_768, nothing),
            (65_536, 1024, nothing),
            (66_560, 512, packed),
            (67_072, 31_232, nothing),
            (98_304, 1_696, nothing),
        ]
    );
}

#[test]
fn a_disk_ends_where_it_is_said_to_and_tables_beyond_it_are_visited_on_demand() {
    let (storage, l1) = file(&[&[MIB, MIB], &[MIB]]);
    let data = MappingKind::Data { host: MIB };
    assert_eq!(
        walked(&storage, &l1, 700).expect("walk"),
        [(0, 512, data), (512, 188, data)]
    );
    let all = walked(&storage, &l1, u64::MAX).expect("walk");
    assert_eq!(all.len(), 5);
    assert_eq!(all[4], (33_280, 32_256, MappingKind::Unallocated));
}

#[test]
fn tables_that_lead_nowhere_end_the_visit() {
    let (storage, l1) = file(&[&[MIB]]);
    for wrong in [MIB, 1 << 50] {
        let l1 = [l1[0], L1Entry::new(wrong, true)];
        assert!(matches!(walked(&storage, &l1, u64::MAX), Err(Error::Corrupt(_))));
    }
    let misaligned = [L1Entry::new(4096 + 512, true)];
    let result = walk(
        &storage,
        ClusterSize::new(12).expect("size"),
        &misaligned,
        MIB,
        &mut |_| Ok(()),
    );
    assert!(matches!(result, Err(Error::Corrupt(_))));
}

#[test]
fn tables_are_changed_and_written_back_where_they_are() {
    let (storage, l1) = file(&[&[MIB], &[], &[MIB, MIB]]);
    let mut changed = Vec::new();
    tables(&storage, cluster(), &l1, &mut |index, table| {
        if table.update(|entry| entry.with_copied(entry.host_offset() != 0)) {
            changed.push((index, table.offset()));
            table.write(&storage)?;
        }
        Ok(())
    })
    .expect("tables");
    assert_eq!(changed, [(0, 4096), (2, 4096 + 1024)]);
    let mut copied = 0;
    walk(&storage, cluster(), &l1, u64::MAX, &mut |mapping| {
        copied += u64::from(mapping.copied);
        Ok(())
    })
    .expect("walk");
    assert_eq!(copied, 3);
}
