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

/// How long ago.
pub fn age(since: Option<prost_types::Timestamp>, now: i64) -> String {
    let seconds = since.map(|since| u64::try_from(now.saturating_sub(since.seconds)).unwrap_or(0));
    seconds.map(duration).unwrap_or_default()
}

/// As kubectl shortens times: two units while they are small, then one.
pub fn duration(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;
    let two = |large: u64, l: &str, small: u64, s: &str| {
        let rest = seconds % large / small;
        let first = seconds / large;
        if rest == 0 {
            format!("{first}{l}")
        } else {
            format!("{first}{l}{rest}{s}")
        }
    };
    match seconds {
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(MINUTE, "m", 1, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(HOUR, "h", MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(DAY, "d", HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(YEAR, "y", DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
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
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (9 * 3600, "9h"),
            (3 * 86_400 + 7200, "3d2h"),
            (9 * 86_400, "9d"),
            (3 * 365 * 86_400, "3y"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
        let since = |seconds| age(Some(prost_types::Timestamp { seconds, nanos: 0 }), 1000);
        assert_eq!(
            (since(995), since(1001), age(None, 5)),
            ("5s".into(), "0s".into(), String::new())
        );
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
