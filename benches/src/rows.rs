//! Results as a table and as JSON.

use anyhow::{Context, Result};
use serde::Serialize;
use std::{fs, path::Path};

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured: `one-agent/16/cpu`.
    pub name: String,
    /// Unit of `value` and `peer`.
    pub unit: &'static str,
    /// Ours, the median.
    pub value: f64,
    /// Least and greatest of the rounds.
    pub spread: (f64, f64),
    /// The peer's median in the same run.
    pub peer: Option<f64>,
    /// Ours over the peer's.
    pub ratio: Option<f64>,
    /// What is asked, in words.
    pub target: Option<String>,
    /// Whether it holds.
    pub holds: Option<bool>,
}

/// The middle of some values; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// Least and greatest.
pub fn spread(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, 0.0), |(low, high), v| (v.min(low), v.max(high)))
}

/// The table.
pub fn print(rows: &[Row]) {
    println!(
        "{:<40} {:>10} {:>21} {:>10} {:>7}  target",
        "name", "value", "spread", "peer", "ratio"
    );
    for row in rows {
        let number = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{v:.1}"));
        let verdict = match row.holds {
            Some(true) => "holds",
            Some(false) => "MISSED",
            None => "",
        };
        println!(
            "{:<40} {:>10.1} {:>21} {:>10} {:>7}  {} {verdict} [{}]",
            row.name,
            row.value,
            format!("{:.1}..{:.1}", row.spread.0, row.spread.1),
            number(row.peer),
            row.ratio.map_or_else(String::new, |v| format!("{v:.2}")),
            row.target.as_deref().unwrap_or(""),
            row.unit,
        );
    }
}

/// The file.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(rows)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 3.0));
    }
}
