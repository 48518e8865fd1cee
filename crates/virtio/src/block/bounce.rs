//! Guest memory for stores that want a request's bytes in one piece.
//!
//! Each I/O thread has one buffer, which no guest can see. So what a store checks, hashes or decompresses cannot
//! change under it, and a store that passes the page cache by never pins a page of guest memory.

use std::cell::RefCell;
use std::io;

use vm_memory::VolatileSlice;

use crate::block::GuestBuffers;

/// Bytes moved at once; longer requests are cut.
const PIECE_BYTES: usize = 1 << 20;
/// What the buffer is aligned to: the block size of any medium.
const ALIGNMENT: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Fills `buffers` by `read`, which fills a piece of memory from a position of the disk.
pub(super) fn read(
    buffers: GuestBuffers<'_, '_>,
    mut offset: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut cursor = Cursor::new(buffers);
    while let Some(len) = cursor.next_piece() {
        with_buffer(len, |piece| {
            read(piece, offset)?;
            cursor.move_bytes(piece.len(), |slice, start| {
                slice.copy_from(piece.get(start..).unwrap_or_default());
            })
        })?;
        offset += len as u64;
    }
    Ok(())
}

/// Empties `buffers` by `write`, which writes a piece of memory to a position of the disk.
pub(super) fn write(
    buffers: GuestBuffers<'_, '_>,
    mut offset: u64,
    mut write: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut cursor = Cursor::new(buffers);
    while let Some(len) = cursor.next_piece() {
        with_buffer(len, |piece| {
            cursor.move_bytes(piece.len(), |slice, start| {
                slice.copy_to(piece.get_mut(start..).unwrap_or_default());
            })?;
            write(piece, offset)
        })?;
        offset += len as u64;
    }
    Ok(())
}

/// Lends `len` bytes, at most [`PIECE_BYTES`], of the thread's buffer.
fn with_buffer<R>(len: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| {
        let needed = len + ALIGNMENT;
        if buffer.len() < needed {
            buffer.resize(needed, 0);
        }
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        work(buffer.get_mut(start..start + len).unwrap_or_default())
    })
}

/// Walks through the slices of a request.
struct Cursor<'a, 'm> {
    slices: GuestBuffers<'a, 'm>,
    /// Bytes of the first slice that are behind.
    done: usize,
    rest: usize,
}

impl<'a, 'm> Cursor<'a, 'm> {
    fn new(slices: GuestBuffers<'a, 'm>) -> Self {
        Self {
            slices,
            done: 0,
            rest: slices.iter().map(VolatileSlice::len).sum(),
        }
    }

    /// Returns the length of the next piece; nothing at the end.
    fn next_piece(&self) -> Option<usize> {
        (self.rest > 0).then_some(self.rest.min(PIECE_BYTES))
    }

    /// Calls `copy` with the slices that make up the next `len` bytes, and with where each begins in them.
    fn move_bytes(&mut self, len: usize, mut copy: impl FnMut(&VolatileSlice<'m>, usize)) -> io::Result<()> {
        let mut moved = 0;
        while moved < len {
            let Some((first, others)) = self.slices.split_first() else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let here = (first.len() - self.done).min(len - moved);
            let slice = first.subslice(self.done, here).map_err(io::Error::other)?;
            copy(&slice, moved);
            moved += here;
            self.done += here;
            if self.done == first.len() {
                self.slices = others;
                self.done = 0;
            }
        }
        self.rest -= len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    /// Slices of guest memory of these lengths, each a page away from the one before.
    fn slices<'m>(memory: &'m GuestMemoryMmap, lens: &[usize]) -> Vec<VolatileSlice<'m>> {
        let mut address = 0;
        let mut slice = |&len: &usize| {
            let slice = memory.get_slice(GuestAddress(address), len).unwrap();
            address += len as u64 + 4096;
            slice
        };
        lens.iter().map(&mut slice).collect()
    }

    #[test]
    fn a_request_of_several_slices_is_one_call_and_a_long_one_is_cut() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        for (lens, expected) in [
            (vec![512, 0, 1, 511, 4096], vec![(1024, 5120)]),
            (vec![], vec![]),
            (
                vec![3 << 19, 512, 1 << 20],
                vec![
                    (1024, 1 << 20),
                    (1024 + (1 << 20), 1 << 20),
                    (1024 + (2 << 20), (1 << 19) + 512),
                ],
            ),
        ] {
            let mut calls = Vec::new();
            let mut disk = vec![0; 8 << 20];
            let slices = slices(&memory, &lens);
            for (number, slice) in (1u8..).zip(&slices) {
                slice.write_slice(&vec![number; slice.len()], 0).unwrap();
            }
            write(&slices, 1024, |piece, offset| {
                calls.push((offset, piece.len()));
                assert!(piece.as_ptr().addr().is_multiple_of(ALIGNMENT));
                let offset = usize::try_from(offset).unwrap();
                disk[offset..offset + piece.len()].copy_from_slice(piece);
                Ok(())
            })
            .unwrap();
            assert_eq!(calls, expected);
            let mut at = 1024;
            for (number, len) in (1u8..).zip(lens) {
                assert!(disk[at..at + len].iter().all(|byte| *byte == number));
                at += len;
            }
            for slice in &slices {
                slice.write_slice(&vec![0; slice.len()], 0).unwrap();
            }
            read(&slices, 1024, |piece, offset| {
                let offset = usize::try_from(offset).unwrap();
                piece.copy_from_slice(&disk[offset..offset + piece.len()]);
                Ok(())
            })
            .unwrap();
            for (number, slice) in (1u8..).zip(&slices) {
                let mut bytes = vec![0; slice.len()];
                slice.read_slice(&mut bytes, 0).unwrap();
                assert!(bytes.iter().all(|byte| *byte == number));
            }
        }
    }

    #[test]
    fn an_error_ends_the_request() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let slices = slices(&memory, &[3 << 20]);
        let mut calls = 0;
        let error = write(&slices, 0, |_, _| {
            calls += 1;
            if calls == 2 {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            }
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(calls, 2);
    }
}
