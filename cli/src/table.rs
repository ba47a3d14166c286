//! How answers look in a terminal: columns, colours where there is somebody to see them, durations a person reads.

use std::{fmt::Write as _, io::IsTerminal as _};

/// What a line has room for where nobody knows.
const WIDTH: usize = 120;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    colours: bool,
    pub(crate) width: usize,
}

impl Paint {
    /// For the standard output: colours on a terminal, unless NO_COLOR says otherwise.
    pub(crate) fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| usize::from(width.0));
        let colours = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { colours, width: if terminal { width.max(60) } else { WIDTH } }
    }

    /// For a test, or a file.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { colours: false, width: WIDTH }
    }

    fn with(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn good(&self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn doubtful(&self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn bad(&self, text: &str) -> String {
        self.with("31;1", text)
    }

    pub(crate) fn quiet(&self, text: &str) -> String {
        self.with("2", text)
    }
}

/// Text broken at spaces to fit a width; its further lines begin at a column. A word that is longer stays whole.
pub(crate) fn wrapped(text: &str, column: usize, width: usize) -> String {
    let room = width.saturating_sub(column).max(30);
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.join(&format!("\n{}", " ".repeat(column)))
}

/// Columns as wide as what is in them. `paint` colours a cell after it was padded.
pub(crate) fn columns(
    head: &[&str],
    rows: &[Vec<String>],
    paint: impl Fn(usize, &str, &str) -> String,
) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    for (number, row) in std::iter::once(&head).chain(rows).enumerate() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let last = column + 1 == row.len();
            let pad = if last { 0 } else { widths[column] - cell.chars().count() + 2 };
            let painted = if number == 0 { cell.clone() } else { paint(column, cell, cell) };
            line.push_str(&painted);
            line.push_str(&" ".repeat(pad));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A duration as a person says it: its largest unit, two where the first is small.
pub(crate) fn seconds(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_and_lines_break_at_words() {
        let rows = vec![vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(columns(&["X", "Y"], &rows, |_, cell, _| cell.to_owned()), "X    Y\na    bb\nccc  d\n");
        assert_eq!(
            wrapped("one two three four five six seven", 2, 32),
            "one two three four five six\n  seven"
        );
    }

    #[test]
    fn durations_are_words() {
        for (given, said) in [(5, "5 s"), (119, "1 min"), (7200, "2 h"), (86_400 * 3, "3 days")] {
            assert_eq!(seconds(given), said);
        }
    }
}
