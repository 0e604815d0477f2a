//! Setting up what the tests and the load test need beyond cargo, git and a C compiler.
//!
//! System packages come from Debian's apt-get, everything else goes into the target directory. A tool that is there is left alone, so a second run sets up nothing.
//! What can't be set up is named, all of it at once.

mod deny;
mod node;
mod packages;
mod peers;
mod python;
mod stamp;

use anyhow::{Result, bail};

pub(crate) use peers::set_up as set_up_peers;

use crate::console;
use crate::context::Context;

/// Something that stages need; its name is what `--without` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tool {
    /// cargo-deny, of one version.
    Deny,
    /// Node and npm, with the packages of the TypeScript client and of the tests.
    Node,
    /// A Python environment with the tests' packages.
    Python,
    /// A headless Chromium and fonts for it.
    Browsers,
    /// Counts instructions.
    Valgrind,
    /// Shows a process's calls of the system, and makes them fail.
    Strace,
}

impl Tool {
    const ALL: [Self; 6] = [
        Self::Deny,
        Self::Node,
        Self::Python,
        Self::Browsers,
        Self::Valgrind,
        Self::Strace,
    ];

    /// The tool of a name.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|tool| tool.name() == name);
        found.map_or_else(
            || bail!("{name:?} cannot be left out; browsers, node, python, deny, valgrind and strace can"),
            Ok,
        )
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Node => "node",
            Self::Python => "python",
            Self::Browsers => "browsers",
            Self::Valgrind => "valgrind",
            Self::Strace => "strace",
        }
    }

    fn set_up(self, context: &Context) -> Result<()> {
        match self {
            Self::Deny => deny::set_up(context),
            Self::Node => node::set_up(context),
            Self::Python => python::set_up(context),
            Self::Browsers => packages::set_up_browsers(context),
            Self::Valgrind => packages::set_up_valgrind(context),
            Self::Strace => packages::set_up_strace(context),
        }
    }
}

/// Sets up every one of the tools.
///
/// # Errors
/// Some can't be; each is printed with its reason, and the error names them.
pub(crate) fn require(context: &Context, tools: &[Tool]) -> Result<()> {
    let mut missing = Vec::new();
    for tool in tools {
        match tool.set_up(context) {
            Ok(()) => console::say(&format!("{}: ready", tool.name())),
            Err(error) => {
                console::say(&format!("{}: {error:#}", tool.name()));
                missing.push(tool.name());
            }
        }
    }
    if !missing.is_empty() {
        bail!("{}", missing.join(", "));
    }
    Ok(())
}
