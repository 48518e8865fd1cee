//! Where each range of a disk comes from, through its whole chain.
