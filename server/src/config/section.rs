//! The one definition of a key: name, type, default, allowed range and documentation in one place.
//!
//! `section!` turns a table of keys into the struct that a component gets, its `Default`, and the list by
//! which files are read and documentation is printed. So none of them can say something else than the others.

use super::problem::{Place, Report};
use super::setting::{Range, Setting};
use super::value::{Entry, Node};

/// A key of a section and the place of its value.
pub(super) struct Field<'a> {
    pub(super) name: &'static str,
    /// The key's documentation, line by line, each with the blank that follows `///`.
    pub(super) about: &'static [&'static str],
    pub(super) range: Range,
    pub(super) reload: Reload,
    pub(super) setting: &'a mut dyn Setting,
}

/// What a reload does with a key that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reload {
    /// It counts from then on.
    Live,
    /// It is named, and counts after the next start.
    Restart,
}

/// A component's part of the configuration.
pub(super) trait Section {
    /// The section's documentation, line by line.
    fn about(&self) -> &'static [&'static str];

    /// Every key, in the order of the table.
    fn fields(&mut self) -> Vec<Field<'_>>;

    /// Takes what a reload can apply of a newer one, and names the other keys that differ; `prefix` is the section's
    /// name with its dot.
    fn renew(&mut self, newer: &Self, prefix: &str, kept: &mut Vec<String>)
    where
        Self: Sized;
}

/// Declares a section: `live key: Type = default, min..=max;` with documentation on each, or `restart` in the place of
/// `live` where a reload can't apply the key. The keys are as visible as the struct.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $visibility:vis struct $name:ident {
            $( $(#[doc = $doc:literal])+ $reload:ident $field:ident: $type:ty = $default:expr $(, $min:literal ..= $max:literal)?; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        $visibility struct $name {
            $(
                $(#[doc = $doc])+
                #[doc = concat!("\n\nDefault: `", stringify!($default), "`.", $(" Allowed: ", $min, " to ", $max, ".")?)]
                $visibility $field: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl Section for $name {
            fn about(&self) -> &'static [&'static str] {
                &[$( $about, )+]
            }

            fn fields(&mut self) -> Vec<Field<'_>> {
                vec![$( Field {
                    name: stringify!($field),
                    about: &[$( $doc, )+],
                    range: section!(@range $($min, $max)?),
                    reload: section!(@reload $reload),
                    setting: &mut self.$field,
                }, )+]
            }

            fn renew(&mut self, newer: &Self, prefix: &str, kept: &mut Vec<String>) {
                $( renew(section!(@reload $reload), &mut self.$field, &newer.$field, &format!("{prefix}{}", stringify!($field)), kept); )+
            }
        }
    };
    (@reload live) => { Reload::Live };
    (@reload restart) => { Reload::Restart };
    (@range $min:literal, $max:literal) => { Range { min: $min, max: $max } };
    (@range) => { Range { min: 0, max: u64::MAX } };
}
pub(super) use section;

/// Takes a newer value, or names its key if that needs a restart.
pub(super) fn renew<T: Clone + PartialEq>(
    reload: Reload,
    value: &mut T,
    newer: &T,
    key: &str,
    kept: &mut Vec<String>,
) {
    match reload {
        Reload::Live => value.clone_from(newer),
        Reload::Restart if value != newer => kept.push(key.to_owned()),
        Reload::Restart => {}
    }
}

/// Sets the keys of one section, whose name is `prefix` (with its dot, or empty).
pub(super) fn set_fields(
    section: &mut dyn Section,
    prefix: &str,
    entries: &[Entry],
    report: &mut Report,
) {
    let mut fields = section.fields();
    for Entry { key, node } in entries {
        let path = format!("{prefix}{key}");
        match fields.iter_mut().find(|field| field.name == key) {
            Some(field) => set_field(field, &path, node, report),
            None => {
                let known = fields.iter().map(|field| format!("{prefix}{}", field.name));
                report_unknown(&path, &node.place, known, report);
            }
        }
    }
}

/// Sets one key.
pub(super) fn set_field(field: &mut Field<'_>, path: &str, node: &Node, report: &mut Report) {
    field.setting.set(path, field.range, node, report);
    report.given(path, &node.place);
}

/// Reports a key that there is none of, with the nearest one that there is.
pub(super) fn report_unknown(
    key: &str,
    place: &Place,
    known: impl Iterator<Item = String>,
    report: &mut Report,
) {
    let nearest = known
        .map(|candidate| (distance(key, &candidate), candidate))
        .min();
    let hint = match nearest {
        Some((distance, candidate)) if distance <= HINT_DISTANCE_MAX => {
            format!("; did you mean {}?", spelled(place, &candidate))
        }
        _ => "; `roomful print-config` lists all keys".to_owned(),
    };
    report.add(place, format!("{key} is no key{hint}"));
}

/// A key in the spelling of the place that it would be written in.
fn spelled(place: &Place, key: &str) -> String {
    match place {
        Place::Variable(_) => super::source::variable_of(key),
        Place::File { .. } | Place::Flag(_) | Place::Default => key.to_owned(),
    }
}

/// Levenshtein's distance: single-character edits between two texts, a separator counting like any character.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (b, above) in other.iter().zip(row.iter_mut().skip(1)) {
            let edited = left.min(*above) + 1;
            let kept = diagonal + usize::from(a != *b);
            diagonal = *above;
            left = edited.min(kept);
            *above = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// Two slips and a separator: beyond that a hint is a guess.
const HINT_DISTANCE_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::distance;

    /// The textbook cases.
    #[test]
    fn distance_counts_edits() {
        for (one, other, edits) in [
            ("", "", 0),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("pubic", "public", 1),
        ] {
            assert_eq!(distance(one, other), edits, "{one} {other}");
            assert_eq!(distance(other, one), edits, "{other} {one}");
        }
    }
}
