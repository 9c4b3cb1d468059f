//! Fields that are read and checked one at a time: each is declared once, with what it may hold.
//!
//! ```text
//! fields!(Capacity {
//!     number vips in CAPACITY_VIPS,
//!     number reals in CAPACITY_REALS,
//! });
//! ```
//!
//! makes `read_fields`, which fills them in from JSON or TOML and leaves those that are absent at their default, and
//! `check_fields`, which holds a record that code has built to the same bounds. Kinds: `number` and `optional_number`
//! in a range of [`allowed`](crate::allowed), `path` and `optional_path`, `word`, `text`, `optional_text`,
//! `flag`. What spans several fields is read in `decode` and checked in `validate`.

use crate::allowed::Allowed;
use crate::problem::Scope;
use crate::reader::Fields;
use crate::records::Words;
use std::path::{Path, PathBuf};

macro_rules! fields {
    ($record:ty { $($kind:ident $field:ident $(in $allowed:ident)?),+ $(,)? }) => {
        impl $record {
            /// Fields that stand for themselves: the name of each, and whether it is text in JSON and TOML.
            pub const FIELDS: &'static [(&'static str, bool)] =
                &[$((stringify!($field), crate::fields::is_text::$kind)),+];

            /// Fills in the fields that are there; the others stay as they are.
            fn read_fields(&mut self, fields: &mut crate::reader::Fields<'_>) {
                $(crate::fields::read::$kind(
                    fields,
                    stringify!($field),
                    &mut self.$field
                    $(, crate::allowed::$allowed)?
                );)+
            }

            /// Reports the fields whose value is not allowed.
            pub(crate) fn check_fields(&self, scope: &mut crate::problem::Scope<'_>) {
                $(crate::fields::check::$kind(
                    scope,
                    stringify!($field),
                    &self.$field
                    $(, crate::allowed::$allowed)?
                );)+
            }
        }
    };
}

pub(crate) use fields;

/// Fields that stand in JSON and TOML as text, by kind.
#[allow(non_upper_case_globals, reason = "named as the kinds are")]
pub(crate) mod is_text {
    pub(crate) const number: bool = false;
    pub(crate) const optional_number: bool = false;
    pub(crate) const path: bool = true;
    pub(crate) const optional_path: bool = true;
    pub(crate) const word: bool = true;
    pub(crate) const text: bool = true;
    pub(crate) const optional_text: bool = true;
    pub(crate) const flag: bool = false;
}

/// How a field of each kind is read.
pub(crate) mod read {
    use super::{Allowed, Fields, PathBuf, Words};

    /// What the text of a path must be.
    const ABSOLUTE: &str = "an absolute path";

    pub(crate) fn number<T: TryFrom<u32>>(
        fields: &mut Fields<'_>,
        key: &'static str,
        into: &mut T,
        allowed: Allowed,
    ) {
        put(fields.number(key, allowed), into);
    }

    pub(crate) fn optional_number<T: TryFrom<u32>>(
        fields: &mut Fields<'_>,
        key: &'static str,
        into: &mut Option<T>,
        allowed: Allowed,
    ) {
        *into = fields.number(key, allowed);
    }

    pub(crate) fn path(fields: &mut Fields<'_>, key: &'static str, into: &mut PathBuf) {
        put(fields.parsed(key, ABSOLUTE), into);
    }

    pub(crate) fn optional_path(fields: &mut Fields<'_>, key: &'static str, into: &mut Option<PathBuf>) {
        *into = fields.parsed(key, ABSOLUTE);
    }

    pub(crate) fn word<T: Words>(fields: &mut Fields<'_>, key: &'static str, into: &mut T) {
        put(fields.word(key), into);
    }

    pub(crate) fn text(fields: &mut Fields<'_>, key: &'static str, into: &mut String) {
        put(fields.text(key), into);
    }

    pub(crate) fn optional_text(fields: &mut Fields<'_>, key: &'static str, into: &mut Option<String>) {
        *into = fields.text(key);
    }

    pub(crate) fn flag(fields: &mut Fields<'_>, key: &'static str, into: &mut bool) {
        put(fields.flag(key), into);
    }

    fn put<T>(found: Option<T>, into: &mut T) {
        if let Some(value) = found {
            *into = value;
        }
    }
}

/// What a field of each kind may hold. Words and flags hold nothing that is wrong; the rules of texts are their records'.
pub(crate) mod check {
    use super::{Allowed, Path, PathBuf, Scope};
    use crate::problem::quoted;

    pub(crate) fn number<T: Copy + Into<u32>>(
        scope: &mut Scope<'_>,
        key: &str,
        number: &T,
        allowed: Allowed,
    ) {
        let number = (*number).into();
        if !allowed.contains(number) {
            scope.problem(key, format!("{number} is not {allowed}"));
        }
    }

    pub(crate) fn optional_number<T: Copy + Into<u32>>(
        scope: &mut Scope<'_>,
        key: &str,
        found: &Option<T>,
        allowed: Allowed,
    ) {
        if let Some(found) = found {
            number(scope, key, found, allowed);
        }
    }

    /// The path names something wherever the daemon was started: it begins at the root, and does not end in `/`.
    pub(crate) fn path(scope: &mut Scope<'_>, key: &str, path: &Path) {
        let text = path.to_string_lossy();
        if !path.is_absolute() || path.file_name().is_none() || text.chars().any(char::is_control) {
            let text = quoted(&text);
            scope.problem(key, format!("{text} is not an absolute path, such as /etc/drover/file"));
        }
    }

    pub(crate) fn optional_path(scope: &mut Scope<'_>, key: &str, found: &Option<PathBuf>) {
        if let Some(found) = found {
            path(scope, key, found);
        }
    }

    pub(crate) const fn word<T>(_: &mut Scope<'_>, _: &str, _: &T) {}

    pub(crate) const fn text(_: &mut Scope<'_>, _: &str, _: &String) {}

    pub(crate) const fn optional_text(_: &mut Scope<'_>, _: &str, _: &Option<String>) {}

    pub(crate) const fn flag(_: &mut Scope<'_>, _: &str, _: &bool) {}
}
