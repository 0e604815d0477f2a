//! Feeds libFuzzer's inputs to the target that `ROOMFUL_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use roomful_fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("ROOMFUL_FUZZ_TARGET").expect("ROOMFUL_FUZZ_TARGET names a target");
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("{name:?} is no target"))
});

fuzz_target!(|data: &[u8]| (TARGET.check)(data));
