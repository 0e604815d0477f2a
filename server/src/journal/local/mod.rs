//! The journal that keeps its rooms on this machine's disk.

mod record;
mod segment;
