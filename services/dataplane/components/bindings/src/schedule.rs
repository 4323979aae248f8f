//! Cron expressions, as Dapr reads them: five fields, or six with seconds first, or a descriptor.
//!
//! Times are UTC, as they are in Dapr's containers.

use std::time::Duration;
use time::{Date, Month, OffsetDateTime, Time};
use weft_components_api::time::duration;

/// Longer expressions are not looked at.
const MAX_BYTES: usize = 256;
/// Events come no faster than this, whatever is asked for.
const SHORTEST: Duration = Duration::from_millis(10);
/// An expression that fits no moment of so many days never does: 29 February is at most eight years away.
const DAYS: u32 = 8 * 366 + 1;
/// A field was written as `*` or `?`.
const STAR: u64 = 1 << 63;

/// Why an expression is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(String);

fn wrong<T>(text: impl Into<String>) -> Result<T, ScheduleError> {
    Err(ScheduleError(text.into()))
}

/// When something is to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Again and again after this pause.
    Every(Duration),
    /// At the moments that fit.
    At(Box<Fields>),
}

/// Bits of each field's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    second: u64,
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
}

struct Bounds {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const SECONDS: Bounds = bounds(0, 59, &[]);
const MINUTES: Bounds = bounds(0, 59, &[]);
const HOURS: Bounds = bounds(0, 23, &[]);
const DAYS_OF_MONTH: Bounds = bounds(1, 31, &[]);
const MONTHS: Bounds = bounds(
    1,
    12,
    &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
);
const WEEKDAYS: Bounds = bounds(0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]);

const fn bounds(least: u32, most: u32, names: &'static [&'static str]) -> Bounds {
    Bounds { least, most, names }
}

impl std::str::FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if text.len() > MAX_BYTES {
            return wrong(format!("longer than {MAX_BYTES} bytes"));
        }
        let mut text = text.trim();
        for prefix in ["CRON_TZ=", "TZ="] {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (zone, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                if !matches!(zone, "UTC" | "Etc/UTC") {
                    return wrong(format!("time zone {zone} is not supported; only UTC is"));
                }
                text = rest.trim();
                break;
            }
        }
        if text.starts_with('@') {
            return descriptor(text);
        }
        let mut fields: Vec<&str> = text.split_whitespace().collect();
        match fields.len() {
            5 => fields.insert(0, "0"),
            6 => {}
            n => return wrong(format!("expected 5 to 6 fields, found {n}: {text:?}")),
        }
        Ok(Self::At(Box::new(Fields {
            second: field(fields[0], &SECONDS)?,
            minute: field(fields[1], &MINUTES)?,
            hour: field(fields[2], &HOURS)?,
            day: field(fields[3], &DAYS_OF_MONTH)?,
            month: field(fields[4], &MONTHS)?,
            weekday: field(fields[5], &WEEKDAYS)?,
        })))
    }
}

fn descriptor(text: &str) -> Result<Schedule, ScheduleError> {
    if let Some(pause) = text.strip_prefix("@every ") {
        return match duration(pause) {
            Some(pause) => Ok(Schedule::Every(pause.max(SHORTEST))),
            None => wrong(format!("failed to parse duration {pause:?}")),
        };
    }
    match text {
        "@yearly" | "@annually" => "0 0 0 1 1 *",
        "@monthly" => "0 0 0 1 * *",
        "@weekly" => "0 0 0 * * 0",
        "@daily" | "@midnight" => "0 0 0 * * *",
        "@hourly" => "0 0 * * * *",
        _ => return wrong(format!("unrecognized descriptor: {text}")),
    }
    .parse()
}

fn field(text: &str, bounds: &Bounds) -> Result<u64, ScheduleError> {
    let mut bits = 0;
    for part in text.split(',').filter(|part| !part.is_empty()) {
        bits |= range(part, bounds)?;
    }
    match bits {
        0 => wrong(format!("{text:?} names no value")),
        bits => Ok(bits),
    }
}

/// `*`, `n`, `n-m`, each with `/step`.
fn range(text: &str, bounds: &Bounds) -> Result<u64, ScheduleError> {
    let (span, step) = match text.split_once('/') {
        Some((span, step)) => (span, Some(number(step, &[])?)),
        None => (text, None),
    };
    let mut star = 0;
    let (start, end) = match span.split_once('-') {
        None if matches!(span, "*" | "?") => {
            star = STAR;
            (bounds.least, bounds.most)
        }
        Some(("*" | "?", _)) => {
            star = STAR;
            (bounds.least, bounds.most)
        }
        None => {
            let start = number(span, bounds.names)?;
            // "n/step" means from n on.
            (start, if step.is_some() { bounds.most } else { start })
        }
        Some((start, end)) => (number(start, bounds.names)?, number(end, bounds.names)?),
    };
    let step = step.unwrap_or(1);
    if step > 1 {
        star = 0;
    }
    let Bounds { least, most, .. } = bounds;
    if start < *least {
        return wrong(format!(
            "beginning of range ({start}) below minimum ({least}): {text}"
        ));
    }
    if end > *most {
        return wrong(format!("end of range ({end}) above maximum ({most}): {text}"));
    }
    if start > end {
        return wrong(format!(
            "beginning of range ({start}) beyond end of range ({end}): {text}"
        ));
    }
    if step == 0 {
        return wrong(format!("step of range should be a positive number: {text}"));
    }
    let values = (start..=end).step_by(step as usize);
    Ok(values.fold(star, |bits, value| bits | 1 << value))
}

fn number(text: &str, names: &[&str]) -> Result<u32, ScheduleError> {
    let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
    if let Some(at) = named {
        // Months begin at one, days of the week at nought.
        return Ok(at as u32 + u32::from(names.len() == 12));
    }
    let digits = !text.is_empty() && text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ => wrong(format!("failed to parse int from {text:?}")),
    }
}

impl Schedule {
    /// The next moment after `now`; `None` when there never is one.
    pub fn next(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        match self {
            Self::Every(pause) => now.checked_add((*pause).try_into().ok()?),
            Self::At(fields) => fields.next(now),
        }
    }
}

fn has(bits: u64, value: u8) -> bool {
    bits & 1 << value != 0
}

impl Fields {
    fn fits(&self, date: Date) -> bool {
        let month: Month = date.month();
        let day = has(self.day, date.day());
        let weekday = has(self.weekday, date.weekday().number_days_from_sunday());
        // When both are restricted, one of them is enough, as cron has always had it.
        let fits = match (self.day | self.weekday) & STAR != 0 {
            true => day && weekday,
            false => day || weekday,
        };
        fits && has(self.month, month.into())
    }

    fn next(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let now = now.to_offset(time::UtcOffset::UTC);
        let first = now
            .replace_nanosecond(0)
            .ok()?
            .checked_add(time::Duration::SECOND)?;
        let mut date = first.date();
        let mut earliest = first.time();
        for _ in 0..DAYS {
            if self.fits(date)
                && let Some(time) = self.next_time(earliest)
            {
                return Some(date.with_time(time).assume_utc());
            }
            date = date.next_day()?;
            earliest = Time::MIDNIGHT;
        }
        None
    }

    /// The first fitting time of a day, from `earliest` on.
    fn next_time(&self, earliest: Time) -> Option<Time> {
        let (h, m, s) = earliest.as_hms();
        for hour in (h..24).filter(|hour| has(self.hour, *hour)) {
            let from = if hour == h { m } else { 0 };
            for minute in (from..60).filter(|minute| has(self.minute, *minute)) {
                let from = if (hour, minute) == (h, m) { s } else { 0 };
                if let Some(second) = (from..60).find(|second| has(self.second, *second)) {
                    return Time::from_hms(hour, minute, second).ok();
                }
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn next(text: &str, now: OffsetDateTime) -> Option<OffsetDateTime> {
        text.parse::<Schedule>().unwrap().next(now)
    }

    #[test]
    fn the_next_moment_is_found() {
        let monday = datetime!(2026-11-23 14:29:59.5 UTC);
        for (text, wanted) in [
            ("* * * * *", datetime!(2026-11-23 14:30:00 UTC)),
            ("* * * * * *", datetime!(2026-11-23 14:30:00 UTC)),
            ("15 * * * * *", datetime!(2026-11-23 14:30:15 UTC)),
            ("0 30 * * * *", datetime!(2026-11-23 14:30:00 UTC)),
            ("30 14 * * *", datetime!(2026-11-23 14:30:00 UTC)),
            ("29 14 * * *", datetime!(2026-11-24 14:29:00 UTC)),
            ("0 0 1 1 *", datetime!(2027-01-01 0:00 UTC)),
            ("0 12 * * wed", datetime!(2026-11-25 12:00 UTC)),
            ("0 12 * FEB-MAR *", datetime!(2027-02-01 12:00 UTC)),
            ("*/20 * * * *", datetime!(2026-11-23 14:40 UTC)),
            ("5/20 * * * *", datetime!(2026-11-23 14:45 UTC)),
            ("0 0 29 2 *", datetime!(2028-02-29 0:00 UTC)),
            // Either of both days.
            ("0 0 25 * tue", datetime!(2026-11-24 0:00 UTC)),
            ("0 0 ? * 5", datetime!(2026-11-27 0:00 UTC)),
            ("@hourly", datetime!(2026-11-23 15:00 UTC)),
            ("@daily", datetime!(2026-11-24 0:00 UTC)),
            ("@weekly", datetime!(2026-11-29 0:00 UTC)),
            ("@monthly", datetime!(2026-12-01 0:00 UTC)),
            ("@yearly", datetime!(2027-01-01 0:00 UTC)),
            ("TZ=UTC 0 15 * * *", datetime!(2026-11-23 15:00 UTC)),
            ("@every 1h30m", datetime!(2026-11-23 15:59:59.5 UTC)),
            ("@every 500ms", datetime!(2026-11-23 14:30:00 UTC)),
            ("@every 1ns", datetime!(2026-11-23 14:29:59.51 UTC)),
        ] {
            assert_eq!(next(text, monday), Some(wanted), "{text}");
        }
        assert_eq!(next("0 0 30 2 *", monday), None, "never");
        // From another offset the same moment.
        let there = datetime!(2026-11-23 16:29:59.5 +2);
        assert_eq!(next("30 14 * * *", there), next("30 14 * * *", monday));
    }

    #[test]
    fn what_is_no_expression_is_said() {
        for (text, said) in [
            ("", "expected 5 to 6 fields, found 0"),
            ("* * * *", "found 4"),
            ("* * * * * * *", "found 7"),
            ("60 * * * *", "end of range (60) above maximum (59)"),
            ("* * 0 * *", "beginning of range (0) below minimum (1)"),
            ("* 5-3 * * *", "beyond end of range"),
            ("*/0 * * * *", "step of range"),
            ("x * * * *", "failed to parse int from \"x\""),
            ("-1 * * * *", "failed to parse int"),
            ("1-2-3 * * * *", "failed to parse int"),
            ("@fortnightly", "unrecognized descriptor"),
            ("@every soon", "failed to parse duration"),
            ("@every -1s", "failed to parse duration"),
            ("TZ=Europe/Berlin * * * * *", "Europe/Berlin is not supported"),
            (", * * * *", "names no value"),
        ] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    proptest! {
        /// The next moment fits, comes after, and there is none between.
        #[test]
        fn no_moment_is_left_out(
            minute in 0u8..60, hour in 0u8..24, step in 1u8..60, at in 0i64..2_000_000_000,
        ) {
            let now = OffsetDateTime::from_unix_timestamp(at).unwrap();
            let text = format!("{minute} {hour} * * *");
            let found = next(&text, now).unwrap();
            prop_assert!(found > now && found - now <= time::Duration::DAY);
            prop_assert_eq!((found.hour(), found.minute(), found.second()), (hour, minute, 0));
            let found = next(&format!("*/{step} * * * * *"), now).unwrap();
            let seconds = (found - now).whole_seconds();
            let fits = |t: i64| (t % 60) % i64::from(step) == 0;
            prop_assert!(fits(at + seconds) && (1..seconds).all(|s| !fits(at + s)));
        }
    }

    #[test]
    fn fuzz_schedule() {
        let seeds = [
            "*/5 1-4 * JAN,mar sun",
            "0 0 0 1 1 ?",
            "@every 1h2m",
            "TZ=UTC 1/3 * * * * *",
            "@daily",
        ];
        let corpus =
            weft_fuzz::Corpus::of(seeds).words(["*", "?", "-", "/", ",", "@every ", "59", "60", "sat"]);
        let now = datetime!(2026-11-23 14:29:59.5 UTC);
        weft_fuzz::target!(corpus, |bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else {
                return;
            };
            if let Ok(schedule) = text.parse::<Schedule>()
                && let Some(next) = schedule.next(now)
            {
                assert!(next > now, "{text}");
            }
        });
    }
}
