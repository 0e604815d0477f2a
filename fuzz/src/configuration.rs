//! The configuration as TOML.
//!
//! What is wrong is said, with its reason; what is right is printed so that it is read back the same.

use std::fs;

use roomful_server::config::{Config, Problems, Sources};

pub(crate) fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // A file that is named is opened, whatever it is: what may name one is left to the configuration's own tests.
    if OPENS.iter().any(|word| text.contains(word)) {
        return;
    }
    match load(text) {
        Err(problems) => {
            let problems = problems.as_slice();
            assert!(!problems.is_empty(), "wrong for no reason");
            assert!(problems.iter().all(|problem| !problem.text.is_empty()));
        }
        Ok(config) => {
            assert!(config.validate().is_ok(), "read, and not valid");
            let printed = config.to_toml();
            if !printed.contains("(redacted)") {
                let again = load(&printed).expect("what is printed can be read");
                assert_eq!(again, config, "another configuration");
            }
        }
    }
}

fn load(text: &str) -> Result<Config, Problems> {
    let name = format!("roomful-fuzz-{}.toml", std::process::id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, text).expect("the temporary directory can be written");
    let sources = Sources {
        file: Some(path.clone()),
        ..Sources::default()
    };
    let loaded = Config::load(&sources);
    fs::remove_file(path).expect("it was written");
    loaded
}

/// Parts of the keys whose values are opened, and the escape that could hide them.
const OPENS: [&str; 5] = ["file", "url", "cert", "key", "\\"];
