//! Whether the metadata of an image agrees with itself.
