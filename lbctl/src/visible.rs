//! Text of others, made safe to show.
//!
//! Records, nodes' pages and ZooKeeper's answers hold text that others wrote. On a terminal it could move the cursor, change
//! the title, answer in the operator's name, or stand in another order than it is read. Here such characters become
//! what they are called in Rust, `\u{1b}`. Every view ends in [`output`](crate::output) or [`paint`](crate::paint), which
//! call this.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns whether a character does something to the text around it or to the terminal, instead of being seen: controls
/// (C0, DEL and C1), the marks, embeddings, overrides and isolates of bidirectional text, line and paragraph
/// separators, and characters without any width. Joiners stay, since scripts and emoji need them.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text on one line: what others wrote, within a line of ours.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, misleads, |shown, c| match c {
        '\n' | '\r' | '\t' => shown.extend(c.escape_default()),
        _ => shown.extend(c.escape_unicode()),
    })
}

/// The text with its line ends: what we composed. Text of others within it has been through [`line`] where it could
/// otherwise pass for lines of ours.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    let other = |c| c != '\n' && misleads(c);
    replaced(text, other, |shown, c| shown.extend(c.escape_unicode()))
}

/// A JSON document that says the same: such characters stand in strings only, where JSON has escapes for them.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    let other = |c| c != '\n' && misleads(c);
    replaced(document, other, |shown, c| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(shown, "\\u{unit:04x}");
        }
    })
}

fn replaced(text: &str, which: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(&which) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if which(c) { escape(&mut shown, c) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that a flag's reason might hold to look like something else.
    const HOSTILE: &str = "a\x1b[2J\u{9b}31m\u{7f}\u{202e}b\u{2066}\nOK\r\u{200b}\u{feff}\u{e0041}";

    #[test]
    fn what_commands_a_terminal_or_reorders_text_is_shown_by_its_number() {
        let shown = line(HOSTILE);
        let expected = r"a\u{1b}[2J\u{9b}31m\u{7f}\u{202e}b\u{2066}\nOK\r\u{200b}\u{feff}\u{e0041}";
        assert_eq!(shown, expected);
        assert!(!shown.contains(misleads));
    }

    #[test]
    fn our_own_line_ends_stay_and_nothing_else_does() {
        assert_eq!(text("one\ntwo\x1b[1m\r\n"), "one\ntwo\\u{1b}[1m\\u{d}\n");
    }

    #[test]
    fn what_people_write_stays_as_it_is() {
        for sound in ["", "Rack 7 – Ümzug, 架 3", "\u{1f468}\u{200d}\u{1f4bb}", "\\u{1b}"] {
            assert_eq!(line(sound), sound);
            assert!(matches!(line(sound), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn a_json_document_still_says_the_same() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, "\u{1f468}"] });
        for document in
            [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()]
        {
            let shown = json(&document);
            assert!(!shown.contains(|c| c != '\n' && misleads(c)), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
