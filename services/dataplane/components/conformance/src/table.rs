//! The table of what each driver is shown to do, in `docs/dapr.md`: written by the runs, and compared with
//! them.

use parking_lot::Mutex;
use std::{collections::BTreeMap, path::Path};

/// What a run has shown of a driver.
pub type Shown = Vec<&'static str>;

const BEGIN: &str = "<!-- shown: begin -->\n";
const END: &str = "<!-- shown: end -->";
/// With this in the environment a run writes its row.
const WRITE: &str = "WEFT_WRITE_TABLES";

/// Tests of one process write one after the other.
static WRITING: Mutex<()> = Mutex::new(());

/// The documentation says of `kind` what was shown, no more and no less.
pub fn told(kind: &str, shown: &[&str]) {
    let _turn = WRITING.lock();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../docs/dapr.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("no table in docs/dapr.md");
    let (table, tail) = rest.split_once(END).expect("no end of the table in docs/dapr.md");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let mut rows: BTreeMap<String, String> = rows
        .filter_map(|line| {
            let (kind, shown) = line.strip_prefix("| `")?.split_once("` | ")?;
            Some((kind.to_owned(), shown.strip_suffix(" |")?.to_owned()))
        })
        .collect();
    let row = shown.join(", ");
    if rows.get(kind) == Some(&row) {
        return;
    }
    if std::env::var_os(WRITE).is_none() {
        let said = rows.get(kind).map_or("nothing", String::as_str);
        panic!(
            "docs/dapr.md says of {kind}: {said}; shown is: {row}. Run the test with {WRITE}=1 to write it"
        );
    }
    rows.insert(kind.to_owned(), row);
    let rows = rows
        .iter()
        .map(|(kind, shown)| format!("| `{kind}` | {shown} |\n"));
    let table = format!("| type | shown |\n|---|---|\n{}", rows.collect::<String>());
    std::fs::write(path, format!("{head}{BEGIN}{table}{END}{tail}")).unwrap();
}
