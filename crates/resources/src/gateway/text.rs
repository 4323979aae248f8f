//! Texts and numbers as the Gateway API bounds them.

use crate::fields::{Field, Problems};
use regex::RegexBuilder;
use std::{ops::RangeInclusive, time::Duration};

/// A longer expression is not supported; the same bound as where it is matched.
const MAX_PATTERN: usize = 1024;
/// Memory that a compiled expression may take.
const MAX_COMPILED: usize = 1024 * 1024;
/// More values that are not supported are not listed.
const MAX_UNSUPPORTED: usize = 8;

/// What is found wrong while an object is read: mistakes, and legal values that nobody here knows.
pub(super) struct Reader<'p> {
    pub problems: &'p mut Problems,
    pub unsupported: Vec<String>,
}

impl<'p> Reader<'p> {
    pub(super) fn new(problems: &'p mut Problems) -> Self {
        Self {
            problems,
            unsupported: Vec::new(),
        }
    }

    /// A legal value without effect here.
    pub(super) fn unsupported(&mut self, field: &Field<'_>, what: &str) {
        if self.unsupported.len() < MAX_UNSUPPORTED {
            self.unsupported.push(format!("{}: {what}", field.path));
        }
    }

    /// One of the values that are known. Another one makes the object one that is not accepted:
    /// later versions of the Gateway API may add values.
    pub(super) fn choice<T: Copy>(&mut self, field: &Field<'_>, known: &[(&str, T)]) -> Option<T> {
        let text = field.text(self.problems)?;
        let found = known.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            let text: String = text.chars().take(64).collect();
            self.unsupported(
                field,
                &format!("{text:?} is not supported; one of {}", names.join(", ")),
            );
        }
        found.map(|(_, value)| *value)
    }

    /// An expression that must fit a whole text.
    pub(super) fn pattern(&mut self, field: &Field<'_>, text: &str) {
        if text.len() > MAX_PATTERN {
            return self.unsupported(
                field,
                &format!("expressions of more than {MAX_PATTERN} bytes are not supported"),
            );
        }
        // Alone first: `a)(b` must not become legal by the brackets put around it.
        for text in [text.to_owned(), format!("^(?:{text})$")] {
            let built = RegexBuilder::new(&text)
                .size_limit(MAX_COMPILED)
                .dfa_size_limit(MAX_COMPILED)
                .build();
            if let Err(error) = built {
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default();
                return self.unsupported(field, &format!("no regular expression in RE2's syntax: {reason}"));
            }
        }
    }
}

/// The items of a list, or none. More than `max` are refused.
pub(super) fn items<'n>(field: Option<Field<'n>>, max: usize, problems: &mut Problems) -> Vec<Field<'n>> {
    let Some(field) = field else { return Vec::new() };
    let items = field.list(problems).unwrap_or_default();
    if items.len() > max {
        field.fail(
            problems,
            format_args!("has {} elements, at most {max} are allowed", items.len()),
        );
    }
    items
}

/// A text of so many bytes.
pub(super) fn bounded(
    field: &Field<'_>,
    bytes: RangeInclusive<usize>,
    problems: &mut Problems,
) -> Option<String> {
    let text = field.text(problems)?;
    if !bytes.contains(&text.len()) {
        field.fail(
            problems,
            format_args!(
                "must have {} to {} bytes, has {}",
                bytes.start(),
                bytes.end(),
                text.len()
            ),
        );
        return None;
    }
    Some(text)
}

/// A whole number.
pub(super) fn number(field: &Field<'_>, range: RangeInclusive<u32>, problems: &mut Problems) -> Option<u32> {
    let crate::tree::Value::Integer(number) = &field.node.value else {
        field.fail(
            problems,
            format_args!("must be a number, found {}", field.node.value.kind()),
        );
        return None;
    };
    let number = u32::try_from(*number).ok().filter(|n| range.contains(n));
    if number.is_none() {
        field.fail(
            problems,
            format_args!("must be from {} to {}", range.start(), range.end()),
        );
    }
    number
}

pub(super) fn port(field: &Field<'_>, problems: &mut Problems) -> Option<u16> {
    number(field, 1..=65_535, problems).and_then(|n| u16::try_from(n).ok())
}

fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && sound(bytes[0])
            && sound(bytes[bytes.len() - 1])
            && bytes.iter().all(|b| sound(*b) || *b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label) && name.parse::<std::net::IpAddr>().is_err()
}

/// `shop.example.com`, and where `wild` is set also `*.example.com`.
pub(super) fn hostname(field: &Field<'_>, wild: bool, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    let name = text.strip_prefix("*.").filter(|_| wild).unwrap_or(&text);
    if text.len() > 253 || !is_hostname(name) {
        let form = if wild {
            "shop.example.com or *.example.com"
        } else {
            "shop.example.com"
        };
        field.fail(
            problems,
            format_args!("{text:?} is no hostname: write it as {form}, in lower case, without port"),
        );
        return None;
    }
    Some(text)
}

pub(super) fn header_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let name = bounded(field, 1..=256, problems)?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.bytes().all(token) {
        field.fail(problems, format_args!("{name:?} is no name of a header"));
        return None;
    }
    Some(name)
}

/// What a header can carry.
pub(super) fn header_value(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let value = bounded(field, 1..=4096, problems)?;
    if !value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) || value.trim() != value {
        field.fail(problems, "has characters that no header's value may have");
        return None;
    }
    Some(value)
}

/// `1h30m`, `500ms`: up to four numbers of up to five digits with a unit each.
pub(super) fn duration(field: &Field<'_>, problems: &mut Problems) -> Option<Duration> {
    let text = field.text(problems)?;
    let read = parse_duration(&text);
    if read.is_none() {
        field.fail(
            problems,
            format_args!("{text:?} is no duration such as 1h, 1m30s or 500ms"),
        );
    }
    read
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let (number, unit) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let (part, after) = if let Some(after) = unit.strip_prefix("ms") {
            (Duration::from_millis(number), after)
        } else if let Some(after) = unit.strip_prefix('s') {
            (Duration::from_secs(number), after)
        } else if let Some(after) = unit.strip_prefix('m') {
            (Duration::from_secs(number * 60), after)
        } else {
            (Duration::from_secs(number * 3600), unit.strip_prefix('h')?)
        };
        (total, rest, parts) = (total + part, after, parts + 1);
    }
    (1..=4).contains(&parts).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_the_gateway_api_writes_them() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1h2m3s4ms", 3_723_004),
            ("99999h", 359_996_400_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "1",
            "s",
            "1.5s",
            "100000s",
            "1s1s1s1s1s",
            "-1s",
            "1d",
            "1 s",
            "1µs",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
