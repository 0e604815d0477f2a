//! The processes of a run: the server that is measured, and what the kernel knows about it and about this one.
//!
//! Reads `/proc`, so measuring works on Linux alone. Figures are of a whole process tree, since a server may be several
//! processes. Nothing here knows what the server does.

mod cores;
mod cpu;
mod memory;
mod server;
mod syscalls;
mod temporary;
mod tree;

pub(crate) use cores::{Cores, files_allowed};
pub(crate) use cpu::{CpuTime, MachineTime};
pub(crate) use memory::{MachineMemory, resident_bytes};
pub(crate) use server::{GivenFile, Launch, Server};
pub(crate) use syscalls::Syscalls;
pub(crate) use temporary::TemporaryPath;
