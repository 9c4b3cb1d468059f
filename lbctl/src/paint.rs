//! Lines of text with tones, which a terminal shows as colours, and columns that stand below each other.

use crate::visible;
use anstyle::{AnsiColor, Style};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use unicode_width::UnicodeWidthStr as _;

/// The tone of a piece of text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// A heading.
    Strong,
    /// Of little interest.
    Dim,
    /// In order.
    Good,
    /// To be looked at.
    Warn,
    /// Broken.
    Bad,
}

impl Tone {
    const fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Dim => Style::new().dimmed(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
        }
    }
}

/// A piece of text in one tone: a terminal shows all of it, on one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    text: String,
    tone: Tone,
}

impl Span {
    /// This text in this tone. Characters that records may hold and that command a terminal are shown instead.
    #[must_use]
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        let text: String = text.into();
        Self { text: visible::line(&text).into_owned(), tone }
    }

    /// The text as it is shown.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its tone.
    #[must_use]
    pub const fn tone(&self) -> Tone {
        self.tone
    }

    /// Width on a terminal, in columns.
    #[must_use]
    pub fn width(&self) -> usize {
        self.text.width()
    }
}

impl<T: Into<String>> From<T> for Span {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A line.
pub type Line = Vec<Span>;

/// The paper to paint on: colours or none, and the width of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paper {
    /// True if tones become colours.
    pub colour: bool,
    /// Columns.
    pub width: usize,
}

impl Default for Paper {
    /// Without colours, and 100 columns wide.
    fn default() -> Self {
        Self { colour: false, width: 100 }
    }
}

impl Paper {
    /// That of standard output: a terminal's width, and colours there unless NO_COLOR (no-color.org) is set.
    #[must_use]
    pub fn stdout() -> Self {
        if !std::io::stdout().is_terminal() {
            return Self::default();
        }
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let width = ratatui::crossterm::terminal::size().map_or(100, |(columns, _)| usize::from(columns));
        Self { colour, width: width.clamp(80, 200) }
    }

    /// The lines as text, each ended, without blanks at the end.
    #[must_use]
    pub fn print(&self, lines: &[Line]) -> String {
        let mut text = String::new();
        for line in lines {
            let end =
                line.iter().rposition(|span| !span.text.trim_end().is_empty()).map_or(0, |last| last + 1);
            for (number, span) in line[..end].iter().enumerate() {
                let is_last = number + 1 == end;
                let shown = if is_last { span.text.trim_end() } else { span.text.as_str() };
                let is_coloured = self.colour && !shown.trim().is_empty();
                let style = if is_coloured { span.tone.style() } else { Style::new() };
                let _ = write!(text, "{style}{shown}{style:#}");
            }
            text.push('\n');
        }
        text
    }
}

/// The alignment of a column's cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// At the left: words.
    Left,
    /// At the right: numbers.
    Right,
}

/// Rows whose cells stand below each other. The last column may be long: it goes on below itself.
#[derive(Clone, Debug)]
pub struct Sheet<const N: usize> {
    align: [Align; N],
    rows: Vec<[Span; N]>,
}

impl<const N: usize> Sheet<N> {
    /// A sheet with these headings.
    #[must_use]
    pub fn new(headings: [(&str, Align); N]) -> Self {
        let align = headings.map(|(_, align)| align);
        Self { align, rows: vec![headings.map(|(heading, _)| Span::new(heading, Tone::Dim))] }
    }

    /// A sheet with these headings, all of whose columns are words.
    #[must_use]
    pub fn plain(headings: [&str; N]) -> Self {
        Self::new(headings.map(|heading| (heading, Align::Left)))
    }

    /// Adds a row of plain cells.
    pub fn cells(&mut self, cells: [String; N]) {
        self.row(cells.map(Span::from));
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [Span; N]) {
        self.rows.push(cells);
    }

    /// The rows without colours, one line each however long it is: what scripts and `grep` can read.
    #[must_use]
    pub fn text(&self, indent: usize) -> String {
        Paper::default().print(&self.lines(indent, usize::MAX))
    }

    /// The lines, `indent` columns from the left, in `width` columns as far as the last cells can be wrapped.
    #[must_use]
    pub fn lines(&self, indent: usize, width: usize) -> Vec<Line> {
        let widest = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N).map(widest).collect();
        let before_last = indent + widths[..N - 1].iter().map(|width| width + 2).sum::<usize>();
        // However little room there is, something must stand there.
        let room = width.saturating_sub(before_last).max(20);
        let mut lines = Vec::new();
        for row in &self.rows {
            let mut line = vec![Span::from(" ".repeat(indent))];
            for ((cell, width), align) in row[..N - 1].iter().zip(&widths).zip(self.align) {
                let blanks = " ".repeat(width - cell.width());
                let text = match align {
                    Align::Left => format!("{}{blanks}", cell.text),
                    Align::Right => format!("{blanks}{}", cell.text),
                };
                line.push(Span { text, tone: cell.tone });
                line.push(Span::from("  "));
            }
            for (number, part) in wrap(&row[N - 1].text, room).into_iter().enumerate() {
                if number > 0 {
                    lines.push(std::mem::replace(&mut line, vec![Span::from(" ".repeat(before_last))]));
                }
                line.push(Span { text: part, tone: row[N - 1].tone });
            }
            lines.push(line);
        }
        lines
    }
}

/// A text in lines of at most `width` columns, broken at blanks; a longer word stands alone. At least one line.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.width() + 1 + word.width() <= width {
            line.extend([" ", word]);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet<3> {
        let mut sheet = Sheet::new([("REAL", Align::Left), ("WEIGHT", Align::Right), ("WHY", Align::Left)]);
        sheet.row(["broker-1".into(), "5".into(), Span::new("down: no answer within a second", Tone::Bad)]);
        sheet.row(["b".into(), "100".into(), "".into()]);
        sheet
    }

    #[test]
    fn numbers_stand_at_the_right_and_the_last_column_goes_on_below_itself() {
        let lines = sheet().lines(1, 40);
        let expected = " REAL      WEIGHT  WHY\n broker-1       5  down: no answer\n                   within a second\n b            100\n";
        assert_eq!(Paper::default().print(&lines), expected);
    }

    #[test]
    fn wide_characters_take_two_columns_and_a_cell_cannot_make_lines_of_its_own() {
        let mut sheet = Sheet::plain(["NODE", "REMARK"]);
        sheet.cells(["lb-1".to_owned(), "a\nlb-2  well\x1b[A".to_owned()]);
        sheet.cells(["\u{6f22}\u{5b57}".to_owned(), String::new()]);
        sheet.cells(["\u{fc}".to_owned(), "x".to_owned()]);
        let shown = "  NODE  REMARK\n  lb-1  a\\nlb-2 well\\u{1b}[A\n  \u{6f22}\u{5b57}\n  \u{fc}     x\n";
        assert_eq!(sheet.text(2), shown);
    }

    #[test]
    fn tones_become_colours_only_where_they_are_wanted() {
        let line = vec![Span::new("down", Tone::Bad), Span::from(" "), Span::new("x", Tone::Plain)];
        let paper = Paper { colour: true, width: 80 };
        assert_eq!(paper.print(std::slice::from_ref(&line)), "\x1b[31mdown\x1b[0m x\n");
        assert_eq!(Paper::default().print(&[line]), "down x\n");
    }

    #[test]
    fn control_characters_of_records_are_shown_and_not_obeyed() {
        let line = vec![Span::new("a\x1b]0;title\x07\nb", Tone::Plain)];
        assert_eq!(Paper::default().print(&[line]), "a\\u{1b}]0;title\\u{7}\\nb\n");
    }
}
