//! From samples to what is asked.

use crate::{
    rows::{Row, median, spread},
    sample::Sample,
    walkthrough::{CONNECTIONS, Samples},
};

type Figure = (&'static str, &'static str, fn(&Sample) -> f64);
const RATE: Figure = ("rate", "requests/s", |s| s.rate);
const P99: Figure = ("p99", "ms", |s| s.p99);
const CPU: Figure = ("cpu", "µs/request", |s| s.cpu);

/// What is asked of a figure, or of its ratio to another path's.
enum Asked {
    Nothing,
    AtMost(f64),
    RatioAtLeast(f64),
    RatioAtMost(f64),
}

/// All rows: first what is asked, then the figures themselves.
pub fn rows(samples: &Samples) -> Vec<Row> {
    use Asked::{AtMost, Nothing, RatioAtLeast, RatioAtMost};
    let [few, many] = CONNECTIONS;
    let mut rows = Vec::new();
    let mut row = |path: &str, at: u32, figure: Figure, peer: Option<&str>, asked: Asked| {
        rows.extend(one(samples, path, at, figure, peer, &asked));
    };
    for at in [few, many] {
        row("hop", at, CPU, Some("nginx"), AtMost(22.0));
        row("hop", at, RATE, Some("nginx"), RatioAtLeast(0.8));
        row("hop", at, RATE, Some("envoy"), RatioAtLeast(2.0));
        row("rules", at, RATE, Some("hop"), RatioAtLeast(0.95));
        row("rules", at, CPU, Some("hop"), Nothing);
    }
    row("chain", few, CPU, Some("hop"), RatioAtMost(3.0));
    row("changes", few, P99, Some("hop"), RatioAtMost(1.5));
    row("changes", few, CPU, Some("hop"), Nothing);
    for path in ["direct", "nginx", "envoy", "hop", "rules", "chain"] {
        for at in [few, many] {
            row(path, at, RATE, None, Nothing);
            row(path, at, P99, None, Nothing);
            if path != "direct" {
                row(path, at, CPU, None, Nothing);
            }
        }
    }
    rows
}

/// A figure, beside the same one of another path in the same rounds; `None` where either was not
/// measured. The ratio is the median of the rounds' ratios.
fn one(
    samples: &Samples,
    path: &str,
    connections: u32,
    (figure, unit, of): Figure,
    peer: Option<&str>,
    asked: &Asked,
) -> Option<Row> {
    let taken = |path: &str| -> Option<Vec<f64>> {
        let mut all = samples.iter();
        let (_, found) = all.find(|((name, at), _)| *name == path && *at == connections)?;
        Some(found.iter().map(of).collect())
    };
    let ours = taken(path)?;
    let theirs = match peer {
        Some(peer) => Some(taken(peer)?),
        None => None,
    };
    let value = median(&ours);
    let ratio = theirs.as_deref().map(|theirs| {
        let pairs = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
        median(&pairs.collect::<Vec<_>>())
    });
    let of_peer = |bound: f64| format!("{bound} × {}", peer.unwrap_or_default());
    let (target, holds) = match asked {
        Asked::Nothing => (None, None),
        Asked::AtMost(most) => (Some(format!("at most {most}")), Some(value <= *most)),
        Asked::RatioAtLeast(least) => (
            Some(format!("at least {}", of_peer(*least))),
            ratio.map(|r| r >= *least),
        ),
        Asked::RatioAtMost(most) => (
            Some(format!("at most {}", of_peer(*most))),
            ratio.map(|r| r <= *most),
        ),
    };
    let beside = peer.map(|peer| format!("/{peer}")).unwrap_or_default();
    Some(Row {
        name: format!("{path}/{connections}/{figure}{beside}"),
        unit,
        value,
        spread: spread(&ours),
        peer: theirs.as_deref().map(median),
        ratio,
        target,
        holds,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample(rate: f64, cpu: f64) -> Sample {
        Sample {
            rate,
            p50: 1.0,
            p99: 2.0,
            cpu,
            rss: Vec::new(),
        }
    }

    #[test]
    fn what_is_asked_is_held_against_what_was_measured_in_the_same_round() {
        let mut samples = Samples::new();
        let rounds = |all: [(f64, f64); 3]| all.map(|(rate, cpu)| sample(rate, cpu)).to_vec();
        samples.insert(("nginx", 16), rounds([(10.0, 10.0), (100.0, 10.0), (10.0, 10.0)]));
        samples.insert(("hop", 16), rounds([(9.0, 21.0), (70.0, 23.0), (9.0, 22.5)]));
        let rows = rows(&samples);
        let row = |name: &str| rows.iter().find(|r| r.name == name).unwrap();
        let rate = row("hop/16/rate/nginx");
        assert_eq!((rate.ratio, rate.holds), (Some(0.9), Some(true)));
        let cpu = row("hop/16/cpu/nginx");
        assert_eq!((cpu.value, cpu.holds), (22.5, Some(false)));
        // What was not measured is not told.
        assert!(
            rows.iter()
                .all(|r| !r.name.contains("envoy") && !r.name.contains("chain"))
        );
    }
}
