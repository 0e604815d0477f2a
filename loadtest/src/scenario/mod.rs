//! The scenarios: what is done to a server, and what is measured meanwhile.
//!
//! Each has its arguments, a `measure` that the comparison calls too, and a `run` for the command. All are bounded in time and
//! all verify that everything they published has arrived; a scenario that can't prove this has no result.

pub(crate) mod besiegers;
pub(crate) mod bystander;
pub(crate) mod connect;
pub(crate) mod durable;
pub(crate) mod echo;
pub(crate) mod fanout;
pub(crate) mod idle;
pub(crate) mod lock;
pub(crate) mod mixed;
pub(crate) mod presence;
pub(crate) mod recover;
pub(crate) mod rooms;
pub(crate) mod siege;
pub(crate) mod slow;
pub(crate) mod state;
pub(crate) mod storm;
pub(crate) mod tls;
pub(crate) mod visitor;

mod class;
mod companion;
mod deadline;
mod load;
mod medians;
mod pace;
mod target;
mod traffic;
mod usage;

pub(crate) use deadline::Deadline;
pub(crate) use load::PER_DELIVERY;
pub(crate) use target::{Restartable, Subject, Target, TargetArgs, check_files};
pub(crate) use usage::{OTHERS_BUSY, TESTER_BUSY};
