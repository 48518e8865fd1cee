//! Captures guest memory at an instant while it is being written, and restores it.
