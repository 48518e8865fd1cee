//! CBOR payloads as flat lists of named fields.
//!
//! A vmstate part is a tree of maps and arrays. Flattened to one line per leaf, with a path such as
//! `regs.rip` or `msrs[0x174]`, any two parts can be compared and any part can be printed, also
//! those of devices that this crate has never heard of. Text keys are joined by dots, array
//! positions stand in brackets in decimal, other keys in brackets in their own notation (integers
//! in hexadecimal, so that positions and numbers cannot be confused).
//!
//! Long arrays of small integers are the usual encoding of register pages and buffers: they become
//! one [`FieldValue::Bytes`]. The meaning of the fields is left to the reader of the list.

use std::{collections::HashMap, fmt};

use ciborium::value::Value;
use thiserror::Error;

/// Largest payload that is taken apart, in bytes. It bounds the memory used: the tree of a payload
/// takes at most some 50 times its bytes.
pub const MAX_FIELDS_PAYLOAD: usize = 4 * 1024 * 1024;

/// From this many elements on, an array that holds only integers below 256 is one string of bytes.
const BYTE_ARRAY_MIN: usize = 16;

/// Nesting of maps and arrays that is followed before a payload is refused.
const MAX_DEPTH: usize = 64;

/// Sum of the lengths of all paths of a payload: a long key above many leaves would multiply.
const MAX_PATH_BYTES: usize = 64 * 1024 * 1024;

/// Why a payload could not be taken apart.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FieldsError {
    /// The payload is larger than [`MAX_FIELDS_PAYLOAD`].
    #[error("payload of {len_bytes} bytes exceeds the limit of {MAX_FIELDS_PAYLOAD}")]
    TooLarge {
        /// Length of the payload.
        len_bytes: usize,
    },
    /// The payload is not one well-formed CBOR item.
    #[error("payload is not well-formed CBOR (noticed after byte {at})")]
    Malformed {
        /// How many bytes had been read when that was noticed.
        at: usize,
    },
    /// The names of all fields together exceed a bound.
    #[error("field names exceed the limit of {MAX_PATH_BYTES} bytes")]
    NamesTooLong,
    /// Bytes follow the CBOR item.
    #[error("{len_bytes} bytes follow the CBOR item")]
    TrailingBytes {
        /// How many.
        len_bytes: usize,
    },
}

/// One leaf of a CBOR payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Where the leaf stands, for example `regs.rip`. Unique within its payload; a key that occurs
    /// twice gets `#2` and so on.
    pub path: String,
    /// What it holds.
    pub value: FieldValue,
}

/// The value of a leaf.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FieldValue {
    /// An integer of CBOR's range, -2^64 to 2^64 - 1.
    Integer(i128),
    /// A string of bytes, or a long array of integers below 256.
    Bytes(Vec<u8>),
    /// A text.
    Text(String),
    /// A truth value.
    Bool(bool),
    /// A floating-point number.
    Float(f64),
    /// CBOR's null.
    Null,
    /// An array without elements.
    EmptyArray,
    /// A map without entries.
    EmptyMap,
}

/// Integers print in hexadecimal from ten up, bytes as hexadecimal digits, texts in quotes with
/// control characters escaped.
impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value @ (..=9)) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value:#x}"),
            Self::Bytes(bytes) => {
                f.write_str("h'")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str("'")
            }
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Null => f.write_str("null"),
            Self::EmptyArray => f.write_str("[]"),
            Self::EmptyMap => f.write_str("{}"),
        }
    }
}

/// Takes a CBOR payload apart into its leaves, in the order in which they are stored.
///
/// # Errors
/// [`FieldsError`] when the payload is too large, not CBOR, nested too deeply or followed by more
/// bytes.
pub fn fields(payload: &[u8]) -> Result<Vec<Field>, FieldsError> {
    let mut flattener = Flattener {
        fields: Vec::new(),
        occurrences: HashMap::new(),
        path_bytes: 0,
    };
    flattener.visit(String::new(), cbor_value(payload)?)?;
    Ok(flattener.fields)
}

/// Decodes a payload into a CBOR tree, within the limits of this module.
fn cbor_value(payload: &[u8]) -> Result<Value, FieldsError> {
    if payload.len() > MAX_FIELDS_PAYLOAD {
        return Err(FieldsError::TooLarge {
            len_bytes: payload.len(),
        });
    }
    let mut rest = payload;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH);
    let value = value.map_err(|_| FieldsError::Malformed {
        at: payload.len() - rest.len(),
    })?;
    match rest.len() {
        0 => Ok(value),
        len_bytes => Err(FieldsError::TrailingBytes { len_bytes }),
    }
}

struct Flattener {
    fields: Vec<Field>,
    occurrences: HashMap<String, usize>,
    path_bytes: usize,
}

impl Flattener {
    fn visit(&mut self, path: String, value: Value) -> Result<(), FieldsError> {
        let leaf = match value {
            Value::Map(entries) if entries.is_empty() => FieldValue::EmptyMap,
            Value::Map(entries) => {
                return entries
                    .into_iter()
                    .try_for_each(|(key, value)| self.visit(join_key(&path, &key), value));
            }
            Value::Array(elements) if elements.is_empty() => FieldValue::EmptyArray,
            Value::Array(elements) => match as_bytes(&elements) {
                Some(bytes) => FieldValue::Bytes(bytes),
                None => {
                    let mut numbered = elements.into_iter().enumerate();
                    return numbered
                        .try_for_each(|(position, value)| self.visit(format!("{path}[{position}]"), value));
                }
            },
            Value::Tag(_, inner) => return self.visit(path, *inner),
            Value::Integer(value) => FieldValue::Integer(value.into()),
            Value::Bytes(bytes) => FieldValue::Bytes(bytes),
            Value::Text(text) => FieldValue::Text(text),
            Value::Bool(value) => FieldValue::Bool(value),
            Value::Float(value) => FieldValue::Float(value),
            _ => FieldValue::Null,
        };
        self.push(path, leaf)
    }

    fn push(&mut self, path: String, value: FieldValue) -> Result<(), FieldsError> {
        self.path_bytes += path.len();
        if self.path_bytes > MAX_PATH_BYTES {
            return Err(FieldsError::NamesTooLong);
        }
        let occurrence = self.occurrences.entry(path.clone()).or_default();
        *occurrence += 1;
        let path = if *occurrence == 1 {
            path
        } else {
            format!("{path}#{occurrence}")
        };
        self.fields.push(Field { path, value });
        Ok(())
    }
}

fn join_key(path: &str, key: &Value) -> String {
    match key {
        Value::Text(text) if path.is_empty() => text.clone(),
        Value::Text(text) => format!("{path}.{text}"),
        Value::Integer(number) => format!("{path}[{:#x}]", i128::from(*number)),
        Value::Bytes(bytes) => format!("{path}[{}]", FieldValue::Bytes(bytes.clone())),
        Value::Bool(value) => format!("{path}[{value}]"),
        Value::Float(value) => format!("{path}[{value:?}]"),
        _ => format!("{path}[?]"),
    }
}

fn as_bytes(elements: &[Value]) -> Option<Vec<u8>> {
    if elements.len() < BYTE_ARRAY_MIN {
        return None;
    }
    elements
        .iter()
        .map(|element| match element {
            Value::Integer(number) => u8::try_from(*number).ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).unwrap();
        bytes
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn lines(value: &Value) -> Vec<String> {
        fields(&encode(value))
            .unwrap()
            .iter()
            .map(|field| format!("{} {}", field.path, field.value))
            .collect()
    }

    #[test]
    fn every_leaf_has_a_path_that_shows_maps_arrays_and_number_keys() {
        let value = Value::Map(vec![
            (text("regs"), Value::Map(vec![(text("rip"), Value::from(0x1000))])),
            (
                text("msrs"),
                Value::Map(vec![(Value::from(0x174), Value::from(7))]),
            ),
            (
                text("segments"),
                Value::Array(vec![Value::from(1), text("b\x1b")]),
            ),
            (text("page"), Value::Array(vec![Value::from(0xab); 16])),
            (text("none"), Value::Array(vec![])),
            (text("off"), Value::from(-3)),
        ]);
        assert_eq!(
            lines(&value),
            [
                "regs.rip 0x1000",
                "msrs[0x174] 7",
                "segments[0] 1",
                "segments[1] \"b\\u{1b}\"",
                "page h'abababababababababababababababab'",
                "none []",
                "off -3",
            ]
        );
    }

    #[test]
    fn repeated_keys_stay_visible() {
        let value = Value::Map(vec![(text("a"), Value::from(1)), (text("a"), Value::from(2))]);
        assert_eq!(lines(&value), ["a 1", "a#2 2"]);
    }

    #[test]
    fn a_long_name_above_many_leaves_is_refused_before_it_is_multiplied() {
        let leaves = Value::Array(vec![Value::Null; 100_000]);
        let value = Value::Map(vec![(Value::Text("k".repeat(1_000_000)), leaves)]);
        assert!(matches!(fields(&encode(&value)), Err(FieldsError::NamesTooLong)));
    }

    #[test]
    fn refuses_what_is_not_one_item() {
        assert!(matches!(fields(&[]), Err(FieldsError::Malformed { .. })));
        assert!(matches!(
            fields(&[0x01, 0x02]),
            Err(FieldsError::TrailingBytes { len_bytes: 1 })
        ));
        assert!(matches!(fields(&[0x81; 200]), Err(FieldsError::Malformed { .. })));
        // An array that claims 2^62 elements must not be allocated for.
        assert!(fields(&[0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0]).is_err());
        // A byte string that claims 2^40 bytes.
        assert!(fields(&[0x5b, 0, 0, 1, 0, 0, 0, 0, 0, 1]).is_err());
    }
}
