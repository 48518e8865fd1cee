//! Vectors that break one clause each, everything else being right.

use snapfile::Codec;

use crate::patch::{self, DATA, DIRECTORY, EXTENTS, File, LEAF, ROOT, SECTION, footer, frame};
use crate::valid::{all_kinds, family, options, sections, write};

/// A file and the clauses that readers report.
pub struct Vector {
    pub name: &'static str,
    pub kind: &'static str,
    pub clause: &'static str,
    pub random: &'static str,
    pub stream: &'static str,
    pub parent: Option<&'static str>,
    pub bytes: Vec<u8>,
}

/// What breaks a clause.
struct Break {
    name: &'static str,
    kind: &'static str,
    clause: &'static str,
    random: &'static str,
    stream: &'static str,
    change: fn(&mut File),
}

/// A corruption that both ways of reading report alike.
fn corrupt(name: &'static str, clause: &'static str, change: fn(&mut File)) -> Break {
    Break {
        name,
        kind: "corrupt",
        clause,
        random: clause,
        stream: clause,
        change,
    }
}

/// Chunk numbers in [`all_kinds`].
const ZEROS: u64 = 0;
const TEXT: u64 = 2;
const FILL: u64 = 4;
const DUPLICATE: u64 = 7;

const KIND_RAW: u8 = 2;
const KIND_ZSTD: u8 = 3;
const KIND_FILL: u8 = 1;
const KIND_DUPLICATE: u8 = 5;
const KIND_PARENT: u8 = 6;
const KIND_ZERO: u8 = 0;

fn frames() -> Vec<Break> {
    vec![
        corrupt("5.3-frame-magic.vmsnap", "5.3", |file| file.0[4096] ^= 1),
        corrupt("5.4-frame-checksum.vmsnap", "5.4", |file| {
            file.0[4096 + frame::FLAGS] ^= 1
        }),
        corrupt("5.5-frame-length.vmsnap", "5.5", |file| {
            let root = file.frame(ROOT, 0);
            file.put_u32(root + frame::STORED_LEN, u32::MAX);
            file.seal_frame_header(root);
        }),
        corrupt("5.6-frame-kind.vmsnap", "5.6", |file| {
            let root = file.frame(ROOT, 0);
            file.0[root + frame::KIND] = KIND_ZSTD;
            file.seal();
        }),
        corrupt("5.7-payload-checksum.vmsnap", "5.7", |file| {
            let directory = file.frame(DIRECTORY, 0);
            file.0[directory + frame::PAYLOAD + 28] ^= 1;
        }),
        Break {
            random: "5.9",
            ..corrupt("5.8-frame-order.vmsnap", "5.8", |file| {
                file.0[4096 + frame::TYPE] = patch::PADDING;
                file.0[4096 + frame::PLAIN_LEN] = file.0[4096 + frame::STORED_LEN];
                file.seal();
            })
        },
        corrupt("5.9-frame-target.vmsnap", "5.9", |file| {
            let section = file.frame(SECTION, 1);
            file.put_u64(section + frame::KEY, 7);
            file.seal();
        }),
    ]
}

fn header() -> Vec<Break> {
    vec![
        corrupt("6.1-magic.vmsnap", "6.1", |file| file.0[0] = 0x09),
        corrupt("6.2-header-checksum.vmsnap", "6.2", |file| file.0[80] ^= 1),
        corrupt("6.5-chunk-size.vmsnap", "6.5", |file| {
            file.0[15] = 22;
            file.seal();
        }),
        corrupt("6.6-memory-bytes.vmsnap", "6.6", |file| {
            file.put_u64(48, 9 * 4096);
            file.seal();
        }),
        Break {
            kind: "unsupported",
            ..corrupt("6.3-major-version.vmsnap", "6.3", |file| {
                file.0[8] = 2;
                file.seal();
            })
        },
        Break {
            kind: "unsupported",
            ..corrupt("12.2-incompatible-feature.vmsnap", "12.2", |file| {
                file.put_u64(16, 1 << 5);
                file.seal();
            })
        },
    ]
}

fn section_breaks() -> Vec<Break> {
    vec![
        corrupt("7.3-state-flag.vmsnap", "7.3", |file| {
            let section = file.frame(SECTION, 1);
            file.0[section + frame::PAYLOAD + 9] ^= 1;
            file.seal();
        }),
        corrupt("7.4-section-digest.vmsnap", "7.4", |file| {
            let section = file.frame(SECTION, 1);
            let last = section + frame::PAYLOAD + file.u32(section + frame::STORED_LEN) as usize - 1;
            file.0[last] ^= 1;
            file.seal();
        }),
        corrupt("7.5-section-twice.vmsnap", "7.5", |file| {
            let section = file.frame(SECTION, 3);
            file.0[section + frame::PAYLOAD + 16 + 5] = b'0';
            let entry = file.directory_entry(3);
            file.0[entry + 64 + 5] = b'0';
            file.seal();
        }),
        corrupt("7.6-region-unaligned.vmsnap", "7.6", |file| {
            file.put_u64(4096 + frame::PAYLOAD + 32, 5);
            file.digest_section(0);
            file.seal();
        }),
        corrupt("7.7-directory-padding.vmsnap", "7.7", |file| {
            let entry = file.directory_entry(1);
            file.0[entry + 64 + 7] = b'x';
            file.seal();
        }),
        corrupt("7.8-directory-offset.vmsnap", "7.8", |file| {
            let entry = file.directory_entry(2);
            file.put_u64(entry, 4096);
            file.seal();
        }),
        corrupt("7.9-directory-version.vmsnap", "7.9", |file| {
            let entry = file.directory_entry(2);
            file.put_u32(entry + 12, 2);
            file.seal();
        }),
        Break {
            kind: "limit exceeded",
            ..corrupt("13.1-regions.vmsnap", "13.1", |file| {
                file.put_u32(4096 + frame::PAYLOAD + 16, 1025);
                file.digest_section(0);
                file.seal();
            })
        },
    ]
}

fn chunks() -> Vec<Break> {
    vec![
        corrupt("8.4-plain-length.vmsnap", "8.4", |file| {
            let data = file.data(KIND_ZSTD);
            file.put_u32(data + frame::PLAIN_LEN, 8192);
            file.seal();
        }),
        corrupt("8.5-zstd-payload.vmsnap", "8.5", |file| {
            let data = file.data(KIND_ZSTD);
            file.0[data + frame::PAYLOAD] ^= 1;
            file.seal();
        }),
        corrupt("8.6-chunk-checksum.vmsnap", "8.6", |file| {
            let data = file.data(KIND_RAW);
            file.0[data + frame::PAYLOAD + 99] ^= 1;
        }),
        Break {
            random: "ok",
            ..corrupt("8.7-extent-count.vmsnap", "8.7", |file| {
                let record = file.extent(KIND_FILL);
                file.put_u64(record + 8, 0);
                file.seal();
            })
        },
        Break {
            random: "ok",
            ..corrupt("8.8-chunk-twice.vmsnap", "8.8", |file| {
                let record = file.extent(KIND_ZERO);
                file.put_u64(record + 8, 3);
                file.seal();
            })
        },
        Break {
            random: "ok",
            ..corrupt("8.9-chunk-missing.vmsnap", "8.9", |file| {
                let record = file.extent(KIND_ZERO);
                file.put_u64(record + 8, 1);
                file.seal();
            })
        },
        corrupt("8.10-duplicate-source.vmsnap", "8.10", |file| {
            let record = file.extent(KIND_DUPLICATE);
            file.put_u64(record + 24, ZEROS);
            let entry = file.index_entry(DUPLICATE);
            file.put_u64(entry, ZEROS);
            file.seal();
        }),
        corrupt("8.14-chunk-digest.vmsnap", "8.14", |file| {
            let data = file.data(KIND_ZSTD);
            file.0[data + frame::DIGEST] ^= 1;
            let entry = file.index_entry(TEXT);
            file.0[entry + 16] ^= 1;
            file.seal();
        }),
    ]
}

fn index() -> Vec<Break> {
    vec![
        corrupt("9.2-leaf-length.vmsnap", "9.2", |file| {
            let leaf = file.frame(LEAF, 0);
            let payload = file.0[leaf + frame::PAYLOAD..][..48 * 7].to_vec();
            file.set_payload(leaf, &payload);
            file.seal();
        }),
        corrupt("9.3-leaf-checksum.vmsnap", "9.3", |file| {
            let entry = file.index_entry(TEXT);
            file.0[entry + 20] ^= 1;
        }),
        corrupt("9.4-index-kind.vmsnap", "9.4", |file| {
            let entry = file.index_entry(TEXT);
            file.0[entry + 12] = 9;
            file.seal();
        }),
        corrupt("9.5-root-length.vmsnap", "9.5", |file| {
            let root = file.frame(ROOT, 0);
            let payload = file.0[root + frame::PAYLOAD..][..16].repeat(2);
            file.set_payload(root, &payload);
            file.seal();
        }),
        corrupt("9.6-leaf-offset.vmsnap", "9.6", |file| {
            let root = file.frame(ROOT, 0);
            file.put_u64(root + frame::PAYLOAD, 1 << 40);
            file.seal();
        }),
        Break {
            stream: "9.8",
            ..corrupt("9.7-index-stored-length.vmsnap", "9.7", |file| {
                let entry = file.index_entry(TEXT);
                let stored_len = file.u32(entry + 8);
                file.put_u32(entry + 8, stored_len - 1);
                file.seal();
            })
        },
        Break {
            random: "8.14",
            ..corrupt("9.8-index-fill.vmsnap", "9.8", |file| {
                let entry = file.index_entry(FILL);
                file.0[entry] ^= 1;
                file.seal();
            })
        },
    ]
}

fn footers() -> Vec<Break> {
    vec![
        corrupt("10.3-file-length.vmsnap", "10.3", |file| {
            let at = file.footer() + footer::FILE_LEN;
            file.put_u64(at, file.u64(at) + 8);
            file.seal();
        }),
        corrupt("10.4-root-offset.vmsnap", "10.4", |file| {
            let at = file.footer() + footer::ROOT_OFFSET;
            file.put_u64(at, 3);
            file.seal();
        }),
        corrupt("10.5-zero-chunks.vmsnap", "10.5", |file| {
            let at = file.footer() + footer::ZERO_CHUNKS;
            file.put_u64(at, 4);
            file.seal();
        }),
        Break {
            random: "ok",
            ..corrupt("10.6-root-digest.vmsnap", "10.6", |file| {
                let at = file.footer() + footer::ROOT_DIGEST;
                file.0[at] ^= 1;
                file.seal();
            })
        },
        Break {
            kind: "incomplete",
            ..corrupt("10.2-no-footer.vmsnap", "10.2", |file| {
                let footer = file.footer();
                file.0.truncate(footer);
            })
        },
        Break {
            kind: "unsupported",
            random: "ok",
            ..corrupt("5.6-unknown-frame-type.vmsnap", "5.6", |file| {
                let extents = file.frame(EXTENTS, 0);
                file.0[extents + frame::TYPE] = 99;
                file.seal();
            })
        },
    ]
}

fn parents() -> Vec<Break> {
    vec![
        corrupt("11.1-parent-flag.vmsnap", "11.1", |file| {
            file.0[41] = 0;
            file.put(44, &[0; 2]);
            file.put(88, &[0; 32]);
            file.put(256, &[0; 64]);
            file.seal();
        }),
        Break {
            stream: "10.6",
            ..corrupt("11.4-parent-digest.vmsnap", "11.4", |file| {
                let record = file.extent(KIND_PARENT);
                file.0[record + 32] ^= 1;
                let entry = file.index_entry(file.u64(record));
                file.0[entry + 16] ^= 1;
                file.seal();
            })
        },
    ]
}

/// Makes all invalid vectors.
pub fn vectors() -> snapfile::Result<Vec<Vector>> {
    let (base, _) = write(&all_kinds(), &sections(), options(4096, Codec::default(), 30))?;
    let [(parent, ..), (_, _, child, _)] = family()?;
    assert!(File(base.clone()).frame(DATA, 0) > 4096, "the base has chunks");
    let alone = [frames(), header(), section_breaks(), chunks(), index(), footers()];
    let with_base = alone.into_iter().flatten().map(|broken| (broken, &base, None));
    let with_parent = parents().into_iter().map(|broken| (broken, &child, Some(parent)));
    let vectors = with_base.chain(with_parent).map(|(broken, bytes, parent)| {
        let mut file = File(bytes.clone());
        (broken.change)(&mut file);
        let Break {
            name,
            kind,
            clause,
            random,
            stream,
            ..
        } = broken;
        Vector {
            name,
            kind,
            clause,
            random,
            stream,
            parent,
            bytes: file.0,
        }
    });
    Ok(vectors.collect())
}
