//! A small language for on-disk structures: each field with its type and its offset, in order.
//!
//! `on_disk!` makes of such a list a plain struct, its little-endian encoding and decoding, and a
//! proof at compile time that the offsets leave no gap and add up to the stated length. So the
//! lists in `format` read like the tables of the specification, and a test compares the two.

use byteorder::{ByteOrder, LittleEndian};

/// A value with a fixed place in an on-disk structure.
pub(crate) trait Field: Sized {
    /// Bytes in the file.
    const LEN: usize;

    /// Takes the field off the front of `bytes`.
    fn take(bytes: &mut &[u8]) -> Self;

    /// Puts the field at the front of `out` and moves past it.
    fn put(&self, out: &mut &mut [u8]);
}

/// Takes `N` bytes off the front; the structures prove that they are there.
fn take_bytes<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let Some((head, tail)) = bytes.split_first_chunk() else {
        unreachable!("the fields of an on-disk structure add up to its length");
    };
    *bytes = tail;
    *head
}

/// Puts `value` at the front of `out`; the structures prove that there is room.
fn put_bytes(out: &mut &mut [u8], value: &[u8]) {
    let Some((head, tail)) = std::mem::take(out).split_at_mut_checked(value.len()) else {
        unreachable!("the fields of an on-disk structure add up to its length");
    };
    head.copy_from_slice(value);
    *out = tail;
}

impl Field for u8 {
    const LEN: usize = 1;

    fn take(bytes: &mut &[u8]) -> Self {
        let [byte] = take_bytes(bytes);
        byte
    }

    fn put(&self, out: &mut &mut [u8]) {
        put_bytes(out, &[*self]);
    }
}

impl<const N: usize> Field for [u8; N] {
    const LEN: usize = N;

    fn take(bytes: &mut &[u8]) -> Self {
        take_bytes(bytes)
    }

    fn put(&self, out: &mut &mut [u8]) {
        put_bytes(out, self);
    }
}

macro_rules! integer_field {
    ($type:ty, $len:literal, $read:ident, $write:ident) => {
        impl Field for $type {
            const LEN: usize = $len;

            fn take(bytes: &mut &[u8]) -> Self {
                LittleEndian::$read(&take_bytes::<$len>(bytes))
            }

            fn put(&self, out: &mut &mut [u8]) {
                let mut bytes = [0; $len];
                LittleEndian::$write(&mut bytes, *self);
                put_bytes(out, &bytes);
            }
        }
    };
}

integer_field!(u16, 2, read_u16, write_u16);
integer_field!(u32, 4, read_u32, write_u32);
integer_field!(u64, 8, read_u64, write_u64);

/// Declares an on-disk structure: `struct Name: length { offset => field: type, .. }`.
macro_rules! on_disk {
    (
        $(#[$meta:meta])*
        struct $name:ident: $len:literal {
            $($(#[$field_meta:meta])* $offset:literal => $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) struct $name {
            $($(#[$field_meta])* pub(crate) $field: $type,)*
        }

        impl $name {
            /// Bytes in the file.
            #[allow(dead_code, reason = "some structures are only ever taken off the front of a payload")]
            pub(crate) const LEN: usize = $len;

            /// Name, offset and size of every field.
            #[cfg(test)]
            pub(crate) const FIELDS: &'static [(&'static str, usize, usize)] =
                &[$((stringify!($field), $offset, <$type as $crate::fields::Field>::LEN),)*];

            /// Decodes the structure.
            pub(crate) fn decode(bytes: &[u8; $len]) -> Self {
                let mut rest = bytes.as_slice();
                Self { $($field: $crate::fields::Field::take(&mut rest),)* }
            }

            /// Decodes the structure at the front of `bytes` and moves past it, if it is there.
            #[allow(dead_code, reason = "not every structure is read from the front of a longer payload")]
            pub(crate) fn split_from(bytes: &mut &[u8]) -> Option<Self> {
                let (head, tail) = bytes.split_first_chunk()?;
                *bytes = tail;
                Some(Self::decode(head))
            }

            /// Encodes the structure.
            pub(crate) fn encode(&self) -> [u8; $len] {
                let mut bytes = [0; $len];
                let mut rest = bytes.as_mut_slice();
                $($crate::fields::Field::put(&self.$field, &mut rest);)*
                debug_assert!(rest.is_empty(), "the fields fill the structure");
                bytes
            }
        }

        const _: () = {
            let mut end = 0;
            $(
                assert!(end == $offset);
                end += <$type as $crate::fields::Field>::LEN;
            )*
            assert!(end == $len);
        };
    };
}

pub(crate) use on_disk;
