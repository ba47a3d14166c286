//! What the audience sees: chapters, checks with their evidence and timing, a closing table.
//!
//! Colours only on a terminal and without NO_COLOR; text wrapped to the terminal's width.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::interrupt;

/// Narrower is unreadable, wider is tiring.
const WIDTHS: std::ops::RangeInclusive<usize> = 60..=100;

/// The terminal, and what has been told so far.
#[derive(Debug)]
pub(crate) struct Stage {
    terminal: bool,
    colours: bool,
    width: usize,
    began: Instant,
    chapters: u32,
    checks: u32,
    facts: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy)]
enum Paint {
    Title,
    Good,
    Bad,
    Quiet,
    Code,
    Strong,
}

impl Paint {
    fn codes(self) -> &'static str {
        match self {
            Self::Title => "1;36",
            Self::Good => "32",
            Self::Bad => "1;31",
            Self::Quiet => "2",
            Self::Code => "33",
            Self::Strong => "1",
        }
    }
}

impl Stage {
    pub(crate) fn open() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
        Self {
            terminal,
            colours: terminal && !plain,
            width: width.clamp(*WIDTHS.start(), *WIDTHS.end()),
            began: Instant::now(),
            chapters: 0,
            checks: 0,
            facts: Vec::new(),
        }
    }

    fn paint(&self, paint: Paint, text: impl Display) -> String {
        if self.colours { format!("\x1b[{}m{text}\x1b[0m", paint.codes()) } else { text.to_string() }
    }

    /// The name of the play.
    pub(crate) fn title(&self, title: &str, subtitle: &str) {
        let pipe = self.paint(Paint::Title, "(═══)");
        println!("\n  {pipe} {}  {}", self.paint(Paint::Title, title), self.paint(Paint::Quiet, subtitle));
    }

    /// Begins a chapter: a line across, a number, and what is about to happen.
    pub(crate) fn chapter(&mut self, title: &str, text: &str) {
        self.chapters += 1;
        let head = format!("━━ {} ━ {title} ", self.chapters);
        let rule = "━".repeat(self.width.saturating_sub(head.chars().count()));
        println!("\n{}", self.paint(Paint::Title, format!("{head}{rule}")));
        self.say(text);
    }

    /// Prose.
    pub(crate) fn say(&self, text: &str) {
        for line in wrap(text, self.width - 2) {
            println!("  {line}");
        }
    }

    /// A command, a manifest or a line of a log, as it is.
    pub(crate) fn show(&self, text: &str) {
        for line in text.trim_matches('\n').lines() {
            println!("    {}", self.paint(Paint::Code, clip(line, self.width - 4)));
        }
    }

    /// Lines that are laid out already.
    pub(crate) fn picture(&self, lines: &[String]) {
        println!();
        for line in lines {
            println!("  {}", clip(line, self.width - 2));
        }
    }

    /// Does something that must turn out as told; prints its evidence and how long it took. The first
    /// check that fails ends the demo.
    pub(crate) fn check<T>(&mut self, what: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        self.checks += 1;
        if self.terminal {
            print!("  {} {}", self.paint(Paint::Quiet, "·"), clip(what, self.width - 4));
            std::io::stdout().flush()?;
        }
        let start = Instant::now();
        let outcome = work();
        let took = start.elapsed();
        if self.terminal {
            // Back to the start of the line, and clear it.
            print!("\r\x1b[2K");
        }
        match outcome {
            Ok((value, evidence)) => {
                self.print_good(what, &evidence, took);
                Ok(value)
            }
            Err(error) => {
                interrupt::give_way();
                println!("  {} {what}", self.paint(Paint::Bad, "✗"));
                Err(error.context(format!("not as told: {what}")))
            }
        }
    }

    fn print_good(&self, what: &str, evidence: &str, took: Duration) {
        // Reading what is known already takes no time worth telling.
        let time = if took < Duration::from_millis(1) { String::new() } else { span(took) };
        let room = self.width.saturating_sub(4 + time.chars().count() + 1);
        let lines = wrap(what, room);
        for (at, line) in lines.iter().enumerate() {
            let mark = if at == 0 { self.paint(Paint::Good, "✓") } else { " ".to_owned() };
            let pad = if at == 0 { room.saturating_sub(line.chars().count()) + 1 } else { 0 };
            let time = if at == 0 { self.paint(Paint::Quiet, &time) } else { String::new() };
            println!("  {mark} {line}{}{time}", " ".repeat(pad));
        }
        for line in evidence.lines().flat_map(|line| wrap(line, self.width - 6)) {
            println!("      {}", self.paint(Paint::Quiet, line));
        }
    }

    /// A number for the closing table.
    pub(crate) fn fact(&mut self, name: &str, value: impl Display) {
        self.facts.push((name.to_owned(), value.to_string()));
    }

    /// The closing table.
    pub(crate) fn curtain(&self) {
        let rule = "━".repeat(self.width);
        println!("\n{}", self.paint(Paint::Title, &rule));
        let wide = self.facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in &self.facts {
            let pad = wide - name.chars().count() + 2;
            println!("  {name}{}{}", " ".repeat(pad), self.paint(Paint::Strong, value));
        }
        let total = span(self.began.elapsed());
        let line = format!("{} chapters, {} checks, all as told, in {total}", self.chapters, self.checks);
        println!("\n  {}", self.paint(Paint::Good, line));
    }

    /// Fails with a reason unless `fine`.
    pub(crate) fn demand(fine: bool, reason: impl FnOnce() -> String) -> Result<()> {
        if !fine {
            bail!("{}", reason());
        }
        Ok(())
    }
}

/// A duration as a person reads it.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 0.01 {
        format!("{:.1} ms", seconds * 1000.0)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

/// Words in lines of `width` characters; a longer word has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let length = |line: &String| line.chars().count();
        let fits =
            |line: &String| length(line) + usize::from(!line.is_empty()) + word.chars().count() <= width;
        match lines.last_mut() {
            Some(line) if line.is_empty() || fits(line) => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn clip(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("a-very-long-word b", 5), ["a-very-long-word", "b"]);
        assert_eq!(clip("abcdef", 4), "abc…");
    }

    #[test]
    fn a_duration_has_the_unit_that_suits_it() {
        let span = |micros| span(Duration::from_micros(micros));
        assert_eq!([span(1234), span(56_789), span(2_345_678)], ["1.2 ms", "57 ms", "2.3 s"]);
    }
}
