//! Times as Go writes and reads them.

use std::time::{Duration, SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Reads a duration: `300ms`, `1.5h`, `2h45m`. `None` when it is none, or negative.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() || text.len() > 64 {
        return None;
    }
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let scale = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += value * scale;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok()
}

/// A moment as RFC 3339 has it, in UTC and to the second.
pub fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}

/// Reads RFC 3339.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_does() {
        for (text, seconds) in [
            ("0", 0.0),
            ("1s", 1.0),
            ("300ms", 0.3),
            ("1.5h", 5400.0),
            ("2h45m", 9900.0),
            ("1h1m1s1ms", 3661.001),
            ("+5s", 5.0),
            ("100us", 0.0001),
        ] {
            let read = duration(text).unwrap_or_else(|| panic!("{text}")).as_secs_f64();
            assert!((read - seconds).abs() < 1e-9, "{text}: {read}");
        }
        for bad in [
            "",
            "5",
            "1",
            "-1s",
            "s",
            "1x",
            "1s2",
            "..s",
            "1e9s",
            "99999999999999999999h",
            "1 s",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn moments_survive_the_round_trip() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(rfc3339(at), "2023-11-14T22:13:20Z");
        assert_eq!(parse_rfc3339("2023-11-14T23:13:20+01:00"), Some(at));
        assert_eq!(rfc3339(at + Duration::from_millis(999)), "2023-11-14T22:13:20Z");
        assert_eq!(parse_rfc3339("yesterday"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text in "[0-9a-zµ.+-]{0,20}") {
            let _ = duration(&text);
            let _ = parse_rfc3339(&text);
        }
    }
}
