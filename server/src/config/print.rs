//! A configuration as TOML: every key with its comment, its allowed values and its default.

use super::Config;
use super::section::{Field, Reload, Section};

/// Writes every key of a configuration, which reads back as the same one (secrets excepted, which are redacted).
pub(super) fn to_toml(config: &Config) -> String {
    let mut out = String::from(HEADER);
    let mut config = config.clone();
    let mut defaults = Config::default();
    for ((name, section), (_, default)) in config.sections().into_iter().zip(defaults.sections()) {
        if !name.is_empty() {
            write_header(&mut out, name, section.about());
        }
        write_fields(&mut out, section, default);
    }
    write_namespaces(&mut out, &mut config);
    out
}

fn write_namespaces(out: &mut String, config: &mut Config) {
    // The one with the comments goes first; the others have the same keys.
    let mut namespaces: Vec<_> = config.namespaces.iter_mut().collect();
    namespaces.sort_by_key(|(name, _)| *name != super::DEFAULT_NAMESPACE);
    for (name, namespace) in namespaces {
        if name == super::DEFAULT_NAMESPACE {
            write_header(out, &format!("namespaces.{name}"), namespace.about());
            write_fields(out, namespace, &mut super::NamespaceConfig::default());
        } else {
            write_header(out, &format!("namespaces.{name}"), &[]);
            namespace
                .fields()
                .iter()
                .for_each(|field| write_value(out, field));
        }
    }
}

fn write_header(out: &mut String, name: &str, about: &[&str]) {
    out.push('\n');
    write_comment(out, about);
    out.push_str(&format!("[{name}]\n"));
}

fn write_fields(out: &mut String, section: &mut dyn Section, default: &mut dyn Section) {
    for (field, default) in section.fields().iter().zip(default.fields()) {
        out.push('\n');
        write_comment(out, field.about);
        let default = default
            .setting
            .to_toml()
            .unwrap_or_else(|| "not set".to_owned());
        let reload = match field.reload {
            Reload::Live => "",
            Reload::Restart => " Needs a restart.",
        };
        out.push_str(&format!(
            "# Allowed: {}. Default: {default}.{reload}\n",
            field.setting.allowed(field.range)
        ));
        write_value(out, field);
    }
}

fn write_value(out: &mut String, field: &Field<'_>) {
    match field.setting.to_toml() {
        Some(value) => out.push_str(&format!("{} = {value}\n", field.name)),
        None => out.push_str(&format!("# {} =\n", field.name)),
    }
}

fn write_comment(out: &mut String, about: &[&str]) {
    about
        .iter()
        .for_each(|line| out.push_str(&format!("#{line}\n")));
}

const HEADER: &str = "\
# Configuration of Roomful: every key, with its default.
#
# What counts, later over earlier: the defaults, this file (`roomful.toml` in the working directory, or --config FILE),
# environment variables (listen.public is ROOMFUL_LISTEN__PUBLIC), flags (--set listen.public=127.0.0.1:7400).
# Only what differs from its default needs to be in a file. SIGHUP has the file read again; what it can't change while
# the server runs says \"needs a restart\".
";
