//! The keys that do not go to the guest.
//!
//! | after | Ctrl-A | x | h, ? | another |
//! |---|---|---|---|---|
//! | anything | wait for the next | send | send | send |
//! | Ctrl-A | send one Ctrl-A | quit | help | nothing |

/// The byte of Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The guest gets this byte.
    Send(u8),
    /// The machine is to end.
    Quit,
    /// The keys are to be listed.
    Help,
}

/// Remembers whether Ctrl-A was the last key.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes the next byte; returns what is to be done, if anything.
    pub fn take(&mut self, byte: u8) -> Option<Key> {
        if !self.escaped {
            self.escaped = byte == ESCAPE;
            return (!self.escaped).then_some(Key::Send(byte));
        }
        self.escaped = false;
        match byte {
            ESCAPE => Some(Key::Send(ESCAPE)),
            b'x' => Some(Key::Quit),
            b'h' | b'?' => Some(Key::Help),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        bytes.iter().filter_map(|byte| keys.take(*byte)).collect()
    }

    #[test]
    fn everything_goes_to_the_guest_but_what_follows_the_escape() {
        assert_eq!(taken(b"xh\x03\r"), b"xh\x03\r".map(Key::Send));
        assert_eq!(taken(b"a\x01xb"), [Key::Send(b'a'), Key::Quit, Key::Send(b'b')]);
        assert_eq!(taken(b"\x01h\x01?"), [Key::Help, Key::Help]);
        assert_eq!(
            taken(b"\x01qx"),
            [Key::Send(b'x')],
            "an unknown key after Ctrl-A is for nobody"
        );
    }

    #[test]
    fn the_escape_twice_is_one_for_the_guest() {
        assert_eq!(taken(b"\x01\x01x"), [Key::Send(1), Key::Send(b'x')]);
    }
}
