//! Results on standard output: tables for people, one JSON object a line for programs.

use crate::exit::Failure;
use anyhow::{Context as _, Result};
use catchment_types::printable;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences, for people.
    Table,
    /// One JSON object a line.
    Json,
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// How they are printed.
    pub format: Format,
    /// Whether a person looks at them.
    pub terminal: bool,
}

impl Output {
    /// Standard output, as `choice` says, else as suits what it is.
    pub fn new(choice: Option<Format>) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let format = choice.unwrap_or(if terminal { Format::Table } else { Format::Json });
        Self { format, terminal }
    }

    /// Prints one result: as JSON, or as the text that `text` makes.
    pub fn item(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        match self.format {
            Format::Json => write(&serde_json::to_string(value).context("write JSON")?),
            Format::Table => write(text().trim_end()),
        }
    }

    /// Prints a list: a JSON object for each item, or a table with these headings. An empty table is said on
    /// standard error as `empty`, so that standard output holds results only.
    pub fn list<T: Serialize, const N: usize>(
        &self,
        items: &[T],
        head: [&str; N],
        row: impl Fn(&T) -> [String; N],
        empty: &str,
    ) -> Result<()> {
        match self.format {
            Format::Json => items.iter().try_for_each(|item| self.item(item, String::new)),
            Format::Table if items.is_empty() => {
                eprintln!("{empty}");
                Ok(())
            }
            Format::Table => write(&table(head, items.iter().map(row), self.terminal)),
        }
    }
}

/// Writes a line to standard output at once, so that a reader at the other end of a pipe sees it now. What clients chose of it
/// does nothing to a terminal.
pub fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", printable(text)).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::ReaderGone.into()),
        written => written.context("print the result"),
    }
}

/// A table without lines: columns two spaces apart; on a terminal, cells wrap to its width.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>, terminal: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head).add_rows(rows);
    table.set_content_arrangement(if terminal { ContentArrangement::Dynamic } else { ContentArrangement::Disabled });
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_columns_without_lines() {
        let rows = [["digits".to_owned(), "3/20".to_owned()], ["a".to_owned(), "-".to_owned()]];
        assert_eq!(table(["NAME", "ROUND"], rows.into_iter(), false), "NAME    ROUND\ndigits  3/20\na       -");
    }
}
