//! Whether two chains show the same disk.
