//! The stages of `cargo xtask test`, in order: cheap ones first, so that a slip shows early.

use crate::setup::Tool;

/// One headline of the run.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The name by which it can be run alone.
    pub name: &'static str,
    /// What it shows, in the present tense.
    pub about: &'static str,
    /// What has to be set up for it.
    pub needs: &'static [Tool],
    /// What it runs.
    pub action: Action,
}

/// What a stage does.
#[derive(Debug)]
pub(crate) enum Action {
    /// Command lines, one after the other, as [`crate::run::counted`] reads them.
    Lines(&'static [&'static str]),
    /// Command lines with warnings of rustdoc as errors.
    Docs(&'static [&'static str]),
    /// [`crate::guard::check`].
    Guard,
    /// [`crate::tidy::check`].
    Tidy,
    /// [`crate::pages::check`].
    Pages,
    /// [`crate::mutants::check`] with the first of them.
    Mutants,
}

/// The server, the harness' programs and the examples: one selection of packages and targets, so that nothing is built twice.
const BUILD: &str = "cargo build --workspace --bins --examples";

/// Every stage.
pub(crate) const STAGES: &[Stage] = &[
    Stage {
        name: "tidy",
        about: "no leftovers, every module has its docs",
        needs: &[],
        action: Action::Tidy,
    },
    Stage {
        name: "format",
        about: "the code has one format",
        needs: &[],
        action: Action::Lines(&["cargo fmt --all --check"]),
    },
    Stage {
        name: "clippy",
        about: "no lint complains",
        needs: &[],
        action: Action::Lines(&["cargo clippy --workspace --all-targets -- -D warnings"]),
    },
    Stage {
        name: "deny",
        about: "dependencies: licences, sources, duplicates",
        needs: &[Tool::Deny],
        action: Action::Lines(&["{deny} --all-features check bans licenses sources"]),
    },
    Stage {
        name: "docs",
        about: "the docs build without a warning",
        needs: &[],
        action: Action::Docs(&["cargo doc --workspace --no-deps"]),
    },
    Stage {
        name: "rust",
        about: "unit, property and behaviour tests",
        needs: &[],
        action: Action::Lines(&[BUILD, "cargo test --workspace -- --skip under_strace"]),
    },
    Stage {
        name: "storage",
        about: "a disk that fails, and power cuts in a record of the server's writes, lose nothing acknowledged",
        needs: &[Tool::Strace],
        action: Action::Lines(&[
            BUILD,
            "cargo test -p roomful-tests --test storage --test power -- under_strace",
        ]),
    },
    Stage {
        name: "mutants",
        about: "bugs can still be planted, and the simulation finds one (`cargo xtask mutants`: all)",
        needs: &[],
        action: Action::Mutants,
    },
    Stage {
        name: "fixtures",
        about: "the golden fixtures are what the protocol crate writes",
        needs: &[],
        action: Action::Lines(&["cargo run -p roomful-protocol --example fixtures -- --check"]),
    },
    Stage {
        name: "conformance-rust",
        about: "the Rust client keeps every promise",
        needs: &[],
        action: Action::Lines(&[
            BUILD,
            "{target}/debug/with-server {target}/debug/examples/conformance {url}",
        ]),
    },
    Stage {
        name: "typescript",
        about: "the TypeScript client's own tests",
        needs: &[Tool::Node],
        action: Action::Lines(&["clients/typescript: npm test"]),
    },
    Stage {
        name: "conformance-typescript",
        about: "the TypeScript client keeps every promise",
        needs: &[Tool::Node],
        action: Action::Lines(&[
            BUILD,
            "clients/typescript: {target}/debug/with-server npm run conformance",
        ]),
    },
    Stage {
        name: "pages",
        about: "server/assets is what its source builds",
        needs: &[Tool::Node],
        action: Action::Pages,
    },
    Stage {
        name: "third-party-node",
        about: "npm ws talks to the server by SPEC.md alone",
        needs: &[Tool::Node],
        action: Action::Lines(&[
            BUILD,
            "{target}/debug/with-server node tests/node/third_party.mjs {url}",
        ]),
    },
    Stage {
        name: "third-party-python",
        about: "Python websockets talks to the server by SPEC.md alone",
        needs: &[Tool::Python],
        action: Action::Lines(&[
            BUILD,
            "{target}/debug/with-server {python} tests/python/third_party.py {url}",
        ]),
    },
    Stage {
        name: "browsers",
        about: "browser tabs stay in step, over a cut and over a server that is killed",
        needs: &[Tool::Node, Tool::Browsers],
        action: Action::Lines(&[
            BUILD,
            "{target}/debug/with-server node tests/node/browser.mjs {url} {target}/screenshots",
            "{target}/debug/with-server node tests/node/board.mjs {url} {target}/screenshots {control}",
        ]),
    },
    Stage {
        name: "guard",
        about: "a publish, a delivery and an idle connection cost no more than their bounds",
        needs: &[Tool::Valgrind],
        action: Action::Guard,
    },
];
