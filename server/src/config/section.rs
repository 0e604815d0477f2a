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
    pub(super) setting: &'a mut dyn Setting,
}

/// A component's part of the configuration.
pub(super) trait Section {
    /// The section's documentation, line by line.
    fn about(&self) -> &'static [&'static str];

    /// Every key, in the order of the table.
    fn fields(&mut self) -> Vec<Field<'_>>;
}

/// Declares a section: `key: Type = default, min..=max;` with documentation on each. The keys are as visible
/// as the struct.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $visibility:vis struct $name:ident {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr $(, $min:literal ..= $max:literal)?; )+
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
                    setting: &mut self.$field,
                }, )+]
            }
        }
    };
    (@range $min:literal, $max:literal) => { Range { min: $min, max: $max } };
    (@range) => { Range { min: 0, max: u64::MAX } };
}
pub(super) use section;

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
