//! Makes the metadata of an image agree with itself again.
