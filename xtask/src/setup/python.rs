//! Python: an environment in the target directory with the pinned packages.

use anyhow::Result;

use super::{packages, stamp};
use crate::context::Context;
use crate::run;

/// Makes the environment and installs what `tests/python/requirements.txt` lists.
///
/// # Errors
/// Python or a package can't be installed.
pub(super) fn set_up(context: &Context) -> Result<()> {
    let environment = context.target.join("venv");
    let requirements = context.root.join("tests/python/requirements.txt");
    stamp::when_changed(&requirements, &environment.join("set-up"), || {
        if !run::succeeds("python3", &["-c", "import ensurepip, venv"]) {
            packages::install(context, "python3 python3-venv")?;
        }
        run::line(context, "python3 -m venv --clear {target}/venv")?;
        run::line(
            context,
            "{python} -m pip install --quiet --disable-pip-version-check -r tests/python/requirements.txt",
        )
    })
}
