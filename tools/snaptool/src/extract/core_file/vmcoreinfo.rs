//! VMCOREINFO: what a Linux kernel tells debuggers of itself, found in guest memory.
//!
//! From its start on a kernel keeps a page-aligned ELF note of lines such as `OSRELEASE=6.1.0`,
//! `KERNELOFFSET=1a000000` (KASLR) and `SYMBOL(swapper_pg_dir)=...`, to be copied into a core after
//! a crash. Where it lies is not known without the kernel's symbols, so all populated memory is
//! looked through, on all cores. Notes of kernels that ran before a reboot may be there as well.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use snapfile::{ChunkKind, PAGE_SIZE, Snapshot};

use super::guest_pages::GuestPages;
use crate::extract::parallel::for_each_chunk;
use crate::progress::Progress;

/// Name of the note, with the zeros up to a multiple of four bytes.
pub const NAME: &[u8; 12] = b"VMCOREINFO\0\0";
const NAME_LEN: u32 = 11;
/// What the content begins with, in every kernel that has such a note.
const FIRST_KEY: &[u8] = b"OSRELEASE=";
/// Bytes before the content: length of the name, length of the content, type, name.
const HEAD_LEN: usize = 12 + NAME.len();

/// Longest content that is taken; kernels reserve a page for it.
const MAX_CONTENT: usize = 64 << 10;
/// Most notes that are looked at.
const MAX_NOTES: usize = 16;

/// Where the kernel's image lies without KASLR (`__START_KERNEL_map`).
pub const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// The content of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmCoreInfo(Vec<u8>);

/// The lines that people want to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelIdentity {
    /// Release, as `uname -r` prints it.
    pub osrelease: String,
    /// Bytes by which KASLR moved the kernel's image.
    pub kernel_offset: Option<u64>,
    /// Build id of the kernel's image, hexadecimal digits.
    pub build_id: Option<String>,
}

impl VmCoreInfo {
    /// The content, as the kernel wrote it.
    pub fn content(&self) -> &[u8] {
        &self.0
    }

    /// Says which kernel this is.
    pub fn identity(&self) -> KernelIdentity {
        KernelIdentity {
            osrelease: self.value("OSRELEASE").unwrap_or_default().to_owned(),
            kernel_offset: self.hexadecimal("KERNELOFFSET"),
            build_id: self.value("BUILD-ID").map(str::to_owned),
        }
    }

    /// Returns the addresses of the kernel's own topmost page table: virtual, guest physical.
    pub fn page_table(&self) -> Option<(u64, u64)> {
        let table = self.hexadecimal("SYMBOL(swapper_pg_dir)")?;
        let physical_base: i64 = self.value("NUMBER(phys_base)")?.parse().ok()?;
        let offset = table.checked_sub(START_KERNEL_MAP)?;
        Some((table, offset.checked_add_signed(physical_base)?))
    }

    /// Returns the value of the line `key=value`.
    fn value(&self, key: &str) -> Option<&str> {
        let lines = self.0.split(|byte| *byte == b'\n');
        lines
            .filter_map(|line| std::str::from_utf8(line).ok()?.split_once('='))
            .find_map(|(name, value)| (name == key).then_some(value))
    }

    fn hexadecimal(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.value(key)?, 16).ok()
    }
}

/// Returns the notes in guest memory, by ascending address, at most [`MAX_NOTES`].
///
/// # Errors
/// A chunk cannot be decoded, or the user interrupted.
pub fn find(snapshot: &Snapshot) -> anyhow::Result<Vec<VmCoreInfo>> {
    let progress = Progress::new("look for VMCOREINFO");
    let found = Mutex::new(Vec::new());
    let page_bytes = usize::try_from(PAGE_SIZE)?;
    // A chunk that repeats an eight-byte pattern or another chunk holds no note of its own.
    let wanted = |kind| !matches!(kind, ChunkKind::Zero | ChunkKind::Fill | ChunkKind::Duplicate);
    for_each_chunk(snapshot, &progress, wanted, |range, plain| {
        for (page, address) in plain
            .chunks(page_bytes)
            .zip((range.guest_address..).step_by(page_bytes))
        {
            if let Some(len_bytes) = content_len(page) {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.push((address, len_bytes));
            }
        }
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable();
    let mut pages = GuestPages::new(snapshot);
    let mut notes = Vec::new();
    for (address, len_bytes) in found.into_iter().take(MAX_NOTES) {
        let content = pages.read(address + HEAD_LEN as u64, len_bytes)?;
        notes.extend(content.map(VmCoreInfo));
    }
    Ok(notes)
}

/// Returns how long the content of the note is that a page begins with, if it is one.
fn content_len(page: &[u8]) -> Option<usize> {
    let (head, content) = page.split_at_checked(HEAD_LEN)?;
    let word = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let is_note =
        word(0)? == NAME_LEN && word(8)? == 0 && head.ends_with(NAME) && content.starts_with(FIRST_KEY);
    let len_bytes = usize::try_from(word(4)?).ok()?;
    (is_note && (FIRST_KEY.len()..=MAX_CONTENT).contains(&len_bytes)).then_some(len_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_names_its_kernel_and_where_its_page_table_lies() {
        let note = VmCoreInfo(
            b"OSRELEASE=6.1.0-9-amd64\nBUILD-ID=00ff\nNUMBER(phys_base)=-1048576\n\
              SYMBOL(swapper_pg_dir)=ffffffff9a210000\nKERNELOFFSET=18000000\n\xff=\n"
                .to_vec(),
        );
        assert_eq!(
            note.identity(),
            KernelIdentity {
                osrelease: "6.1.0-9-amd64".to_owned(),
                kernel_offset: Some(0x1800_0000),
                build_id: Some("00ff".to_owned()),
            }
        );
        assert_eq!(note.page_table(), Some((0xffff_ffff_9a21_0000, 0x1a11_0000)));
    }

    #[test]
    fn a_page_is_a_note_only_with_name_type_length_and_first_line() {
        let page = |name_len: u32, content_len: u32, kind: u32, name: &[u8; 12]| {
            let mut page = Vec::new();
            for word in [name_len, content_len, kind] {
                page.extend_from_slice(&word.to_le_bytes());
            }
            page.extend_from_slice(name);
            page.extend_from_slice(b"OSRELEASE=6.1.0\n");
            content_len_of(page)
        };
        fn content_len_of(mut page: Vec<u8>) -> Option<usize> {
            page.resize(4096, 0);
            content_len(&page)
        }
        assert_eq!(page(11, 16, 0, NAME), Some(16));
        assert_eq!(page(11, 4096, 0, NAME), Some(4096), "it goes on in the next page");
        assert_eq!(page(12, 16, 0, NAME), None);
        assert_eq!(page(11, 16, 1, NAME), None);
        assert_eq!(page(11, 16, 0, b"VMCOREINF0\0\0"), None);
        assert_eq!(page(11, u32::MAX, 0, NAME), None);
        assert_eq!(page(11, 0, 0, NAME), None);
        assert_eq!(content_len_of(vec![]), None);
        assert_eq!(content_len(&[11]), None, "a short page");
    }
}
