//! A small KVM machine whose whole state can be saved and restored.
