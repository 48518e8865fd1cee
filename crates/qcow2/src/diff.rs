//! Ranges in which two snapshots of one image differ.
