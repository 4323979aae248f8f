//! Printing: tables for people, JSON and YAML for scripts.

use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;
use std::io::{self, Write};

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For scripts
    Json,
    /// For scripts
    Yaml,
}

/// Prints `value` as JSON or YAML.
pub fn print_value(value: &Value, format: Format) -> Result<()> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value)?,
        Format::Json | Format::Table => serde_json::to_string_pretty(value)?,
    };
    print_text(text.trim_end())
}

/// Prints what was done: a line for people, a value for scripts.
pub fn print_done(text: &str, value: &Value, format: Format) -> Result<()> {
    match format {
        Format::Table => print_text(text),
        Format::Json | Format::Yaml => print_value(value, format),
    }
}

/// Prints one text and a line end. A reader that went away (`| head`) is no error.
pub fn print_text(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Prints a text as it is. A reader that went away (`| head`) is no error.
pub fn print_raw(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Lines up rows under a header, as kubectl does: three spaces between columns.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut out = String::new();
        for (i, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let last = i + 1 == cells.len();
            out.push_str(cell);
            if !last {
                out.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
            }
        }
        out.trim_end().to_owned()
    };
    let mut lines = vec![line(header.to_vec())];
    lines.extend(rows.iter().map(|r| line(r.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// How long ago, as kubectl tells it: the two largest units.
pub fn age(since: Option<prost_types::Timestamp>, now: i64) -> String {
    let Some(since) = since else { return String::new() };
    let seconds = now.saturating_sub(since.seconds).max(0);
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(3);
    let (large, name) = units[first];
    let mut text = format!("{}{name}", seconds / large);
    // Of days alone the hours matter little after ten of them.
    if let Some((small, name)) = units.get(first + 1)
        && (seconds % large) / small > 0
        && seconds < 10 * 86_400
    {
        text.push_str(&format!("{}{name}", (seconds % large) / small));
    }
    text
}

/// RFC 3339 in UTC, seconds.
pub fn time(stamp: Option<prost_types::Timestamp>) -> String {
    let Some(stamp) = stamp else { return String::new() };
    time::OffsetDateTime::from_unix_timestamp(stamp.seconds)
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let since = |seconds: i64| {
            let seconds = 1_800_000_000 - seconds;
            age(Some(prost_types::Timestamp { seconds, nanos: 0 }), 1_800_000_000)
        };
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_725, "1h2m"),
            (86_400 + 7_200, "1d2h"),
            (9 * 86_400 + 60, "9d"),
            (400 * 86_400 + 3600, "400d"),
        ] {
            assert_eq!(since(seconds), text, "{seconds}");
        }
        assert_eq!(age(None, 5), "");
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "long cell".into(), "x".into()],
            vec!["bb".into(), "c".into(), String::new()],
        ];
        assert_eq!(
            table(&["N", "VALUE", "Z"], &rows),
            "N    VALUE       Z\na    long cell   x\nbb   c"
        );
    }
}
