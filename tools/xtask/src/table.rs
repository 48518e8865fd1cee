//! Tables in Markdown, aligned so that they are readable as they stand.

use std::fmt;

/// A table with a heading row; numbers are as the caller wrote them.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new<const N: usize>(columns: [&str; N]) -> Self {
        Self {
            rows: vec![columns.map(str::to_owned).to_vec()],
        }
    }

    /// Adds a row; the first cell names it.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let width = |column| {
            self.rows
                .iter()
                .map(|row| cell(row, column).chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        };
        for (number, row) in self.rows.iter().enumerate() {
            for column in 0..columns {
                let (text, width) = (cell(row, column), width(column));
                // The first column holds names, the others figures.
                if column == 0 {
                    write!(f, "| {text:<width$} ")?
                } else {
                    write!(f, "| {text:>width$} ")?
                }
            }
            writeln!(f, "|")?;
            if number == 0 {
                for column in 0..columns {
                    let dashes = "-".repeat(width(column) + 1);
                    if column == 0 {
                        write!(f, "|:{dashes}")?
                    } else {
                        write!(f, "|{dashes}:")?
                    }
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_names_left_and_figures_right() {
        let mut table = Table::new(["mode", "pause"]);
        table.row(["async".to_owned(), "1 ms".to_owned()]);
        assert_eq!(
            table.to_string(),
            "| mode  | pause |\n|:------|------:|\n| async |  1 ms |\n"
        );
    }
}
