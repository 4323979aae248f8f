//! Manifests that are nearly right: read without a panic, and what is wrong is told with a line that the
//! file has.

use crate::{Problem, Resource, parse};
use std::path::Path;
use weft_fuzz::Corpus;

type Read = fn(&str, &[u8]) -> Result<Vec<Resource>, Vec<Problem>>;

fn corpus() -> Corpus {
    let words = [
        "---\n",
        "- ",
        ": ",
        "{}",
        "[]",
        "null",
        "\"",
        "|\n",
        "&a",
        "*a",
        "\t",
        "  ",
        "metadata:",
        "spec:",
    ];
    Corpus::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/manifest")).words(words)
}

fn holds(read: Read, bytes: &[u8]) {
    // YAML ends a line with either, or with both.
    let lines = bytes.iter().filter(|c| matches!(c, b'\n' | b'\r')).count() + 1;
    match read("x.yaml", bytes) {
        Ok(resources) => resources.iter().for_each(|resource| {
            assert!(!resource.meta.name.is_empty(), "an object without a name");
        }),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            for problem in problems {
                let line = problem.line as usize;
                // An end that comes too early is told after the last line.
                assert!((1..=lines + 1).contains(&line), "line {line} of {lines}");
                assert!(!problem.text.contains('\n'), "{:?}", problem.text);
            }
        }
    }
}

#[test]
fn fuzz_manifest() {
    weft_fuzz::target!(corpus(), |bytes: &[u8]| holds(parse, bytes));
}

#[test]
fn the_target_notices_lines_that_are_counted_from_zero() {
    fn from_zero(file: &str, bytes: &[u8]) -> Result<Vec<Resource>, Vec<Problem>> {
        parse(file, bytes).map_err(|mut problems| {
            problems
                .iter_mut()
                .for_each(|p| p.line = p.line.saturating_sub(1));
            problems
        })
    }
    assert!(weft_fuzz::finds!(20_000, corpus(), |bytes: &[u8]| holds(
        from_zero, bytes
    )));
}
