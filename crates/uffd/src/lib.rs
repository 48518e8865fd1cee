//! Safe owner of a userfaultfd and of the memory ranges registered with it.
