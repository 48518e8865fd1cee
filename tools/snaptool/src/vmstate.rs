//! The vmstate of a snapshot as text and as JSON, whatever devices it holds.
//!
//! Parts are CBOR with named fields, so nothing here knows what a register or a device is. In JSON,
//! byte strings become hexadecimal digits and number keys hexadecimal texts (`"0x174"`); integers
//! stay integers, exact to 64 bits.

use anyhow::Context;
use ciborium::value::Value as Cbor;
use serde_json::{Map, Number, Value as Json, json};
use snapfile::diff::{FieldValue, MAX_FIELDS_PAYLOAD};
use snapfile::{Encoding, SectionEntry, SectionKind, Snapshot};

use crate::output::{Output, printable, section_kind};

/// Nesting of maps and arrays that is followed before a payload is refused.
const MAX_DEPTH: usize = 64;

/// Bytes of a byte string that the text form shows.
const SHOWN_BYTES: usize = 32;

/// Returns the sections of one kind whose names start with `prefix`, in file order.
pub fn parts<'a>(
    snapshot: &'a Snapshot,
    kind: SectionKind,
    prefix: &'a str,
) -> impl Iterator<Item = &'a SectionEntry> {
    snapshot
        .sections()
        .iter()
        .filter(move |entry| entry.kind == kind && entry.name.starts_with(prefix))
}

/// Prints every field of a section on a line of its own, `name: path: value`.
pub fn print_fields(output: &mut Output, snapshot: &Snapshot, entry: &SectionEntry) -> anyhow::Result<()> {
    let payload = snapshot.read_section(entry)?;
    if entry.encoding != Encoding::Cbor {
        let value = FieldValue::Bytes(payload);
        return Ok(output.fact(&entry.name, shorten(&value))?);
    }
    let fields = snapfile::diff::fields(&payload).with_context(|| describe(entry))?;
    for field in &fields {
        output.fact(
            &entry.name,
            format_args!("{}: {}", printable(&field.path), shorten(&field.value)),
        )?;
    }
    Ok(())
}

/// A value for people: long byte strings are cut, with their length.
pub fn shorten(value: &FieldValue) -> String {
    match value {
        FieldValue::Bytes(bytes) if bytes.len() > SHOWN_BYTES => {
            let start = FieldValue::Bytes(bytes.iter().take(SHOWN_BYTES).copied().collect());
            format!("{start}... ({} bytes)", bytes.len())
        }
        value => value.to_string(),
    }
}

/// Returns the sections of one kind as an object: name to version and state.
pub fn sections_json(snapshot: &Snapshot, kind: SectionKind, prefix: &str) -> anyhow::Result<Json> {
    let mut object = Map::new();
    for entry in parts(snapshot, kind, prefix) {
        let state = section_json(snapshot, entry)?;
        object.insert(
            entry.name.clone(),
            json!({ "version": entry.version, "state": state }),
        );
    }
    Ok(Json::Object(object))
}

/// Returns the content of one section; one that is not CBOR as hexadecimal digits.
pub fn section_json(snapshot: &Snapshot, entry: &SectionEntry) -> anyhow::Result<Json> {
    let payload = snapshot.read_section(entry)?;
    if entry.encoding != Encoding::Cbor {
        return Ok(Json::String(hex(&payload)));
    }
    anyhow::ensure!(
        payload.len() <= MAX_FIELDS_PAYLOAD,
        "{}: larger than {MAX_FIELDS_PAYLOAD} bytes",
        describe(entry)
    );
    let value = ciborium::de::from_reader_with_recursion_limit(payload.as_slice(), MAX_DEPTH)
        .map_err(|_| anyhow::anyhow!("{}: not well-formed CBOR", describe(entry)))?;
    Ok(to_json(value))
}

fn describe(entry: &SectionEntry) -> String {
    format!("{} section {:?}", section_kind(entry.kind), entry.name)
}

fn to_json(value: Cbor) -> Json {
    match value {
        Cbor::Integer(number) => match (u64::try_from(number), i64::try_from(number)) {
            (Ok(number), _) => Json::from(number),
            (_, Ok(number)) => Json::from(number),
            _ => Json::String(i128::from(number).to_string()),
        },
        Cbor::Bytes(bytes) => Json::String(hex(&bytes)),
        Cbor::Float(number) => Number::from_f64(number).map_or(Json::Null, Json::Number),
        Cbor::Text(text) => Json::String(text),
        Cbor::Bool(value) => Json::Bool(value),
        Cbor::Tag(_, inner) => to_json(*inner),
        Cbor::Array(elements) => elements.into_iter().map(to_json).collect(),
        Cbor::Map(entries) => entries
            .into_iter()
            .map(|(key, value)| (key_text(key), to_json(value)))
            .collect::<Map<_, _>>()
            .into(),
        _ => Json::Null,
    }
}

fn key_text(key: Cbor) -> String {
    match key {
        Cbor::Text(text) => text,
        Cbor::Integer(number) => format!("{:#x}", i128::from(number)),
        other => match to_json(other) {
            Json::String(text) => text,
            other => other.to_string(),
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut digits, byte| {
            // Writing to a String cannot fail.
            let _ = write!(digits, "{byte:02x}");
            digits
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_exact_and_keys_become_texts() {
        let value = Cbor::Map(vec![
            (Cbor::Text("tsc".into()), Cbor::Integer(u64::MAX.into())),
            (Cbor::Integer(0x174.into()), Cbor::Bytes(vec![0xde, 0xad])),
            (
                Cbor::Bool(true),
                Cbor::Array(vec![Cbor::Null, Cbor::Integer((-5).into())]),
            ),
        ]);
        let expected = r#"{"0x174":"dead","true":[null,-5],"tsc":18446744073709551615}"#;
        let json: Json = serde_json::from_str(expected).unwrap();
        assert_eq!(to_json(value), json);
    }

    #[test]
    fn long_byte_strings_are_cut_in_text() {
        let text = shorten(&FieldValue::Bytes(vec![0xab; 100]));
        assert!(text.ends_with("... (100 bytes)"), "{text}");
        assert_eq!(shorten(&FieldValue::Bytes(vec![1, 2])), "h'0102'");
    }
}
