//! One whole-VM snapshot: the order of pause, memory, state, resume, commit; and the reverse.
#![forbid(unsafe_code)]
