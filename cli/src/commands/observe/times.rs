//! Times as Hubble's command line takes them.

use std::time::{Duration, SystemTime};
use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// A moment, fixed when the command line was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(SystemTime);

impl Moment {
    pub fn stamp(self) -> prost_types::Timestamp {
        self.0.into()
    }
}

/// So long ago, or a time as such.
pub fn parse(text: &str) -> Result<Moment, String> {
    if let Some(ago) = duration(text) {
        return SystemTime::now()
            .checked_sub(ago)
            .map(Moment)
            .ok_or_else(|| "that is before all times".into());
    }
    moment(text).map(|t| Moment(t.into())).ok_or_else(|| {
        "write so long ago as 30s, 5m or 1h30m, or a time as 2026-01-02 or 2026-01-02T15:04:05Z".into()
    })
}

/// As Go writes durations: `1h30m`, `1.5s`, `250ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = next;
    }
    Some(total)
}

fn moment(text: &str) -> Option<OffsetDateTime> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Some(time);
    }
    if let Ok(date) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Some(date.midnight().assume_utc());
    }
    // Shorter forms have an offset, too.
    let (at, offset) = match text.strip_suffix('Z') {
        Some(at) => (at, "+00:00"),
        None if text.is_ascii() && text.len() > 6 => text.split_at(text.len() - 6),
        None => return None,
    };
    for rest in [":00", ":00:00"] {
        if let Ok(time) = OffsetDateTime::parse(&format!("{at}{rest}{offset}"), &Rfc3339) {
            return Some(time);
        }
    }
    let rfc1123 = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] [offset_hour \
         sign:mandatory][offset_minute]"
    );
    OffsetDateTime::parse(text, rfc1123).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_ago() {
        for (text, expected) in [
            ("5m", Some(300.0)),
            ("2h", Some(7200.0)),
            ("1h30m", Some(5400.0)),
            ("1.5s", Some(1.5)),
            ("250ms", Some(0.25)),
            ("", None),
            ("5", None),
            ("m", None),
            ("-1s", None),
            ("5d", None),
            ("5µ", None),
            ("1e400h", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_secs_f64()), expected, "{text}");
        }
    }

    #[test]
    fn times_as_such() {
        let seconds = |text: &str| moment(text).map(OffsetDateTime::unix_timestamp);
        for text in [
            "2023-11-14T22:13:20Z",
            "2023-11-14T23:13:20+01:00",
            "2023-11-14T22:13:20.250Z",
            "Tue, 14 Nov 2023 22:13:20 +0000",
        ] {
            assert_eq!(seconds(text), Some(1_700_000_000), "{text}");
        }
        assert_eq!(seconds("2023-11-14T22:13Z"), Some(1_699_999_980));
        assert_eq!(seconds("2023-11-14T22Z"), Some(1_699_999_200));
        assert_eq!(seconds("2023-11-14"), Some(1_699_920_000));
        for bad in ["yesterday", "2023-13-01", "22:13", "Ä"] {
            assert!(parse(bad).unwrap_err().contains("5m"), "{bad}");
        }
    }
}
