//! The reference of the command line, as Markdown: every command with its arguments and options.
//!
//! It follows from the definition that clap parses by, so it cannot say anything else. `docs/lbctl.md` holds it between
//! [`BEGIN`] and [`END`]; `cargo xtask reference` writes it there, and a test compares.

use clap::{Arg, Command};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The line of the document behind which the reference begins.
pub const BEGIN: &str =
    "<!-- Written by `cargo xtask reference`: edit the command line's definition instead. -->";
/// The line of the document before which it ends.
pub const END: &str = "<!-- The end of what is written. -->";

/// Columns of prose.
const WIDTH: usize = 120;

/// The reference of `root` and all its commands.
#[must_use]
pub fn markdown(root: &Command) -> String {
    let mut commands = Vec::new();
    collect(root, root.get_name(), &mut commands);
    let mut users = BTreeMap::<String, usize>::new();
    for (_, command) in &commands {
        headings(command).into_iter().for_each(|heading| *users.entry(heading).or_default() += 1);
    }
    // What only one command has stands with it. The root's own options are everybody's.
    let everybodys = headings(root);
    let is_shared = |heading: &str| users[heading] > 1 || everybodys.iter().any(|own| own == heading);

    let mut text = String::new();
    let mut told = Vec::new();
    for (_, command) in &commands {
        for heading in headings(command).into_iter().filter(|heading| is_shared(heading)) {
            if !told.contains(&heading) {
                section(&mut text, &heading);
                table(&mut text, command, Some(&heading));
                told.push(heading);
            }
        }
    }
    for (name, command) in commands.iter().filter(|(_, command)| !command.has_subcommands()) {
        section(&mut text, &format!("`{name}`"));
        describe(&mut text, name, command);
        table(&mut text, command, None);
        for heading in headings(command) {
            if is_shared(&heading) {
                let _ = write!(text, "\nAlso: [{}](#{}).\n", lower(&heading), anchor(&heading));
            } else {
                let _ = write!(text, "\n{heading}:\n");
                table(&mut text, command, Some(&heading));
            }
        }
        if let Some(more) = command.get_after_help() {
            epilogue(&mut text, &more.to_string());
        }
    }
    text
}

/// `command` and all below it, each by its full name; hidden ones are left out.
fn collect<'a>(command: &'a Command, name: &str, found: &mut Vec<(String, &'a Command)>) {
    found.push((name.to_owned(), command));
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, &format!("{name} {}", below.get_name()), found);
    }
}

/// The headings of a command's options, in order, each once.
fn headings(command: &Command) -> Vec<String> {
    let mut headings = Vec::new();
    for heading in command.get_arguments().filter_map(Arg::get_help_heading) {
        if !headings.iter().any(|known| known == heading) {
            headings.push(heading.to_owned());
        }
    }
    headings
}

fn section(text: &mut String, title: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    let _ = writeln!(text, "### {title}");
}

/// Writes what the command does, and how it is typed.
fn describe(text: &mut String, name: &str, command: &Command) {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    paragraphs(text, &about);
    let usage = command.clone().bin_name(name).render_usage().to_string();
    let _ = write!(text, "\n```text\n{}\n```\n", usage.trim_start_matches("Usage: ").trim());
}

/// Writes what stands behind the options: prose, then examples as they are typed.
fn epilogue(text: &mut String, more: &str) {
    let examples = more.find("Examples:").unwrap_or(more.len());
    paragraphs(text, &more[..examples]);
    if examples < more.len() {
        let _ = write!(text, "\n```text\n{}\n```\n", more[examples..].trim_end());
    }
}

fn paragraphs(text: &mut String, prose: &str) {
    for paragraph in prose.split("\n\n").map(sentence).filter(|paragraph| !paragraph.is_empty()) {
        let _ = write!(text, "\n{}\n", wrapped(&paragraph));
    }
}

/// The arguments below a heading, or those without one.
fn table(text: &mut String, command: &Command, heading: Option<&str>) {
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let mut arguments = arguments.filter(|argument| argument.get_help_heading() == heading).peekable();
    if arguments.peek().is_some() {
        text.push_str("\n| | |\n|---|---|\n");
        arguments.for_each(|argument| row(text, argument));
    }
}

fn row(text: &mut String, argument: &Arg) {
    let mut typed = Vec::new();
    typed.extend(argument.get_short().map(|short| format!("-{short}")));
    typed.extend(argument.get_long().map(|long| format!("--{long}")));
    let mut typed = typed.join(", ");
    if argument.get_action().takes_values() {
        let names: Vec<String> =
            argument.get_value_names().unwrap_or_default().iter().map(|name| format!("<{name}>")).collect();
        typed = if typed.is_empty() { names.join(" ") } else { format!("{typed} {}", names.join(" ")) };
    }
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut meaning = sentence(&help).replace('|', "\\|");
    let values: Vec<String> = match argument.get_action().takes_values() {
        true => {
            argument.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect()
        }
        false => Vec::new(),
    };
    if !values.is_empty() {
        let _ = write!(meaning, " One of {}.", values.join(", "));
    }
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if argument.get_action().takes_values() && !defaults.is_empty() && defaults != ["``"] {
        let _ = write!(meaning, " Default: {}.", defaults.join(", "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(meaning, " Environment: `{}`.", variable.to_string_lossy());
    }
    let _ = writeln!(text, "| `{}` | {meaning} |", typed.replace('|', "\\|"));
}

/// On one line, ended by a full stop, and nothing in it taken for HTML.
fn sentence(text: &str) -> String {
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('<', "\\<");
    if !text.is_empty() && !text.ends_with(['.', ':', '?', '!']) {
        text.push('.');
    }
    text
}

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

fn lower(heading: &str) -> String {
    let mut letters = heading.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// The anchor that a heading has where Markdown is shown.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::CommandFactory as _;

    const DOCUMENT: &str = include_str!("../../docs/lbctl.md");

    #[test]
    fn the_document_has_the_reference_of_what_can_be_typed() {
        let (_, rest) = DOCUMENT.split_once(BEGIN).expect("a line where the reference begins");
        let (found, _) = rest.split_once(END).expect("a line where it ends");
        assert!(
            found.trim() == markdown(&Cli::command()).trim(),
            "docs/lbctl.md is not what follows from the command line: run `cargo xtask reference`"
        );
    }

    #[test]
    fn options_that_several_commands_share_are_told_once() {
        let text = markdown(&Cli::command());
        assert_eq!(text.matches("| `-n, --dry-run` |").count(), 1);
        assert_eq!(text.matches("| `-z, --zookeeper <SERVERS>` |").count(), 1);
    }

    #[test]
    fn hidden_commands_are_left_out() {
        assert!(!markdown(&Cli::command()).contains("lbctl reference"));
    }
}
