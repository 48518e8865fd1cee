//! Guest memory as a picture in the terminal: one character per run of chunks.
//!
//! The characters carry the meaning, the colours only repeat it, so that a pipe or NO_COLOR loses
//! nothing. A cell that holds any data shows how well the data compressed; otherwise it shows the
//! most common kind in it.

use anstyle::{AnsiColor, Style};
use snapfile::{ChunkEntry, ChunkKind, Snapshot};

use super::chunks::for_each_entry;
use crate::output::{Output, size};

/// Cells in a row; a power of two, so that rows begin at round addresses.
const COLUMNS: u64 = 64;

/// Rows that a picture should not exceed by much.
const ROWS: u64 = 32;

/// What a cell looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    character: char,
    color: AnsiColor,
    meaning: &'static str,
}

const fn look(character: char, color: AnsiColor, meaning: &'static str) -> Look {
    Look {
        character,
        color,
        meaning,
    }
}

const ZERO: Look = look('.', AnsiColor::BrightBlack, "zero");
const FILL: Look = look(':', AnsiColor::Cyan, "fill");
const DUPLICATE: Look = look('=', AnsiColor::Blue, "duplicate");
const PARENT: Look = look('^', AnsiColor::Magenta, "in the parent");
/// Data by the quarter of its size that is stored.
const DATA: [Look; 4] = [
    look('-', AnsiColor::Green, "data stored in up to 25 %"),
    look('+', AnsiColor::BrightGreen, "up to 50 %"),
    look('*', AnsiColor::Yellow, "up to 75 %"),
    look('#', AnsiColor::Red, "more"),
];

/// What a run of chunks holds, in bytes of guest memory.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    zero: u64,
    fill: u64,
    duplicate: u64,
    parent: u64,
    data: u64,
    stored: u64,
}

impl Cell {
    fn add(&mut self, entry: &ChunkEntry, len_bytes: u64) {
        match entry.kind {
            ChunkKind::Zero => self.zero += len_bytes,
            ChunkKind::Fill => self.fill += len_bytes,
            ChunkKind::Duplicate => self.duplicate += len_bytes,
            ChunkKind::Parent => self.parent += len_bytes,
            ChunkKind::Raw | ChunkKind::Zstd | ChunkKind::Lz4 => {
                self.data += len_bytes;
                self.stored += u64::from(entry.stored_len);
            }
        }
    }

    fn look(&self) -> Look {
        if self.data > 0 {
            let quarter = (self.stored * 4).div_ceil(self.data).clamp(1, 4);
            return DATA[usize::try_from(quarter - 1).unwrap_or(0)];
        }
        // Of equally common kinds the last one is shown: the more telling one.
        [
            (self.zero, ZERO),
            (self.fill, FILL),
            (self.parent, PARENT),
            (self.duplicate, DUPLICATE),
        ]
        .into_iter()
        .max_by_key(|(len_bytes, _)| *len_bytes)
        .map_or(ZERO, |(_, look)| look)
    }
}

/// Prints the picture of every region, and the legend.
pub fn print(output: &mut Output, snapshot: &Snapshot) -> anyhow::Result<()> {
    let chunk_bytes = u64::from(snapshot.chunk_size().bytes());
    let chunks_per_cell = snapshot
        .layout()
        .chunk_count()
        .div_ceil(COLUMNS * ROWS)
        .next_power_of_two();
    let cell_bytes = chunk_bytes * chunks_per_cell;
    output.fact(
        "cell",
        format_args!("{} ({chunks_per_cell} chunks)", size(cell_bytes)),
    )?;
    for (index, region) in snapshot.memory_map().regions().iter().enumerate() {
        let chunks = snapshot.layout().region_chunks(index);
        let first = chunks.start;
        let mut cells =
            vec![Cell::default(); usize::try_from((chunks.end - first).div_ceil(chunks_per_cell))?];
        for_each_entry(snapshot, chunks, |number, range, entry| {
            let cell = usize::try_from((number.0 - first) / chunks_per_cell)?;
            if let Some(cell) = cells.get_mut(cell) {
                cell.add(&entry, u64::from(range.len_bytes));
            }
            Ok(())
        })?;
        let mut address = region.guest_address;
        for row in cells.chunks(usize::try_from(COLUMNS)?) {
            output.line(format_args!("{address:#014x}  {}", paint(row)))?;
            address += COLUMNS * cell_bytes;
        }
    }
    for look in [ZERO, FILL, DUPLICATE, PARENT].into_iter().chain(DATA) {
        output.line(format_args!(
            "{} {}",
            colored(look, &look.character.to_string()),
            look.meaning
        ))?;
    }
    Ok(())
}

/// Draws a row, one colour sequence per run of equal cells.
fn paint(row: &[Cell]) -> String {
    row.chunk_by(|left, right| left.look() == right.look())
        .filter_map(|run| run.first().map(|cell| (cell.look(), run.len())))
        .map(|(look, count)| colored(look, &look.character.to_string().repeat(count)))
        .collect()
}

fn colored(look: Look, text: &str) -> String {
    let style = Style::new().fg_color(Some(look.color.into()));
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_how_its_data_compressed_or_its_commonest_kind() {
        let cell = |data, stored, zero, parent| {
            Cell {
                data,
                stored,
                zero,
                parent,
                ..Cell::default()
            }
            .look()
        };
        assert_eq!(cell(100, 100, 0, 0), DATA[3]);
        assert_eq!(cell(100, 25, 900, 0), DATA[0]);
        assert_eq!(cell(100, 26, 900, 0), DATA[1]);
        assert_eq!(cell(100, 0, 0, 0), DATA[0]);
        assert_eq!(cell(0, 0, 2, 1), ZERO);
        assert_eq!(cell(0, 0, 1, 2), PARENT);
        assert_eq!(cell(0, 0, 1, 1), PARENT);
    }
}
