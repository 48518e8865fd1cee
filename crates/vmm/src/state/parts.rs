//! The saved state as named, versioned CBOR parts, and back.

use crate::state::VmState;

/// One named part of a saved state, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePart {
    /// `vm`, `vcpu/N`, `device/NAME` or `platform`.
    pub name: String,
    /// Version of the part's schema.
    pub version: u32,
    /// One CBOR map.
    pub cbor: Vec<u8>,
}

/// Why a saved state cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A part is missing.
    #[error("part {name} is missing")]
    MissingPart {
        /// Name of the part.
        name: String,
    },
}

impl VmState {
    /// Encodes the state; equal states give equal bytes.
    ///
    /// # Errors
    /// A device's state cannot be encoded.
    pub fn to_parts(&self) -> Result<Vec<StatePart>, StateError> {
        unimplemented!()
    }

    /// Decodes a state. The parts may come in any order.
    ///
    /// # Errors
    /// A part is unknown, missing, there twice, too large, or breaks its schema.
    pub fn from_parts(parts: &[StatePart]) -> Result<Self, StateError> {
        let _ = parts;
        unimplemented!()
    }
}
