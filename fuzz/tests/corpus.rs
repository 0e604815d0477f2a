//! The inputs that libFuzzer kept, through the same functions: what once took a new path stays tried.

use std::fs;
use std::path::Path;

use roomful_fuzz::TARGETS;

/// Goal: the properties hold for every kept input. Method: each file of a target's folder goes through it; a folder without files, or
/// without a target, is a mistake.
#[test]
fn the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let files: Vec<_> = fs::read_dir(corpus.join(target.name))
            .expect("each target has a folder")
            .map(|entry| entry.expect("it can be read").path())
            .collect();
        assert!(files.len() > 5, "{} has no corpus", target.name);
        for file in files {
            let bytes = fs::read(&file).expect("it can be read");
            let outcome = std::panic::catch_unwind(|| (target.check)(&bytes));
            assert!(outcome.is_ok(), "{} does not hold", file.display());
        }
    }
    for folder in fs::read_dir(corpus).expect("it was read above") {
        let name = folder.expect("it can be read").file_name();
        let known = TARGETS.iter().any(|target| *target.name == *name);
        assert!(known, "{name:?} is the folder of no target");
    }
}
