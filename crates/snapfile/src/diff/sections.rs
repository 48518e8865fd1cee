//! Sections of two snapshots, paired by kind and name and compared field by field.

use std::collections::HashMap;

use super::fields::{Field, FieldValue, fields};
use crate::error::Result;
use crate::reader::Snapshot;
use crate::section::{Encoding, SectionEntry, SectionKind};

/// A section that differs between two snapshots.
#[derive(Clone, Debug, PartialEq)]
pub struct SectionDiff {
    /// The section in the first snapshot, if it is there.
    pub before: Option<SectionEntry>,
    /// The section in the second snapshot, if it is there.
    pub after: Option<SectionEntry>,
    /// The fields that differ, where both payloads are CBOR that can be taken apart. Empty when
    /// only the encoding of the same fields differs, or the version.
    pub fields: Option<Vec<FieldChange>>,
}

impl SectionDiff {
    /// Returns kind and name, which are the same on both sides.
    pub fn key(&self) -> Option<(SectionKind, &str)> {
        self.before.as_ref().or(self.after.as_ref()).map(key)
    }

    /// Returns whether the section belongs to the guest's state rather than to the file's story.
    pub fn is_state(&self) -> bool {
        self.before
            .as_ref()
            .or(self.after.as_ref())
            .is_some_and(|entry| entry.state)
    }
}

/// A field of a section that differs between two snapshots.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldChange {
    /// Where the field stands, for example `regs.rip`.
    pub path: String,
    /// Its value in the first snapshot, if it is there.
    pub before: Option<FieldValue>,
    /// Its value in the second snapshot, if it is there.
    pub after: Option<FieldValue>,
}

fn key(entry: &SectionEntry) -> (SectionKind, &str) {
    (entry.kind, &entry.name)
}

pub(super) fn diff_sections(before: &Snapshot, after: &Snapshot) -> Result<Vec<SectionDiff>> {
    let mut others: HashMap<_, _> = after.sections().iter().map(|entry| (key(entry), entry)).collect();
    let mut diffs = Vec::new();
    for entry in before.sections() {
        match others.remove(&key(entry)) {
            Some(other) if same_content(entry, other) => {}
            Some(other) => diffs.push(SectionDiff {
                before: Some(entry.clone()),
                after: Some(other.clone()),
                fields: diff_payloads(before, entry, after, other)?,
            }),
            None => diffs.push(SectionDiff {
                before: Some(entry.clone()),
                after: None,
                fields: None,
            }),
        }
    }
    for entry in after.sections() {
        if others.contains_key(&key(entry)) {
            diffs.push(SectionDiff {
                before: None,
                after: Some(entry.clone()),
                fields: None,
            });
        }
    }
    // The memory map is compared region by region elsewhere.
    diffs.retain(|diff| diff.key().is_some_and(|(kind, _)| kind != SectionKind::MemoryMap));
    diffs.sort_by_key(|diff| !diff.is_state());
    Ok(diffs)
}

fn same_content(before: &SectionEntry, after: &SectionEntry) -> bool {
    let identity = |entry: &SectionEntry| (entry.version, entry.encoding, entry.len_bytes, entry.digest);
    identity(before) == identity(after)
}

fn diff_payloads(
    before: &Snapshot,
    before_entry: &SectionEntry,
    after: &Snapshot,
    after_entry: &SectionEntry,
) -> Result<Option<Vec<FieldChange>>> {
    if before_entry.encoding != Encoding::Cbor || after_entry.encoding != Encoding::Cbor {
        return Ok(None);
    }
    let before_fields = fields(&before.read_section(before_entry)?);
    let after_fields = fields(&after.read_section(after_entry)?);
    Ok(match (before_fields, after_fields) {
        (Ok(before_fields), Ok(after_fields)) => Some(diff_fields(before_fields, after_fields)),
        _ => None,
    })
}

/// Pairs fields by path: first those of `before` in their order, then what only `after` has.
fn diff_fields(before: Vec<Field>, after: Vec<Field>) -> Vec<FieldChange> {
    let mut unpaired: HashMap<&str, &FieldValue> = after
        .iter()
        .map(|field| (field.path.as_str(), &field.value))
        .collect();
    let mut changes = Vec::new();
    for field in before {
        let other = unpaired.remove(field.path.as_str());
        if other.is_none_or(|value| !same_value(value, &field.value)) {
            let after = other.cloned();
            changes.push(FieldChange {
                path: field.path,
                before: Some(field.value),
                after,
            });
        }
    }
    for field in &after {
        if unpaired.contains_key(field.path.as_str()) {
            let (path, after) = (field.path.clone(), Some(field.value.clone()));
            changes.push(FieldChange {
                path,
                before: None,
                after,
            });
        }
    }
    changes
}

/// Equality that takes a float for equal to itself also when it is not a number.
fn same_value(left: &FieldValue, right: &FieldValue) -> bool {
    match (left, right) {
        (FieldValue::Float(left), FieldValue::Float(right)) => left.to_bits() == right.to_bits(),
        _ => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(path: &str, value: i128) -> Field {
        Field {
            path: path.to_owned(),
            value: FieldValue::Integer(value),
        }
    }

    #[test]
    fn fields_are_paired_by_path_and_changes_keep_their_order() {
        let before = vec![field("rax", 1), field("rip", 0x1000), field("gone", 3)];
        let after = vec![field("new", 4), field("rip", 0x2000), field("rax", 1)];
        let changes: Vec<_> = diff_fields(before, after)
            .into_iter()
            .map(|change| (change.path, change.before.is_some(), change.after.is_some()))
            .collect();
        assert_eq!(
            changes,
            [
                ("rip".to_owned(), true, true),
                ("gone".to_owned(), true, false),
                ("new".to_owned(), false, true)
            ]
        );
    }

    #[test]
    fn a_float_that_is_no_number_equals_itself() {
        let nan = |_| {
            vec![Field {
                path: "x".to_owned(),
                value: FieldValue::Float(f64::NAN),
            }]
        };
        assert_eq!(diff_fields(nan(0), nan(1)), []);
    }
}
