//! Captures of memory that plain threads write: real userfaultfd, no virtual machine.

mod consistency;
mod discards;
mod failure;
mod guest;
mod huge_pages;
mod kernel_writer;
mod restore;
mod sink;
mod unpopulated;
