//! Snapshots on images in memory, judged by a reader and a check of their own.

mod crash;
mod image;
mod operations;
mod refusals;
