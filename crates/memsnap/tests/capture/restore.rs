//! What was captured comes back.
