//! `docs/roles.md` says whom each method admits. It is written from the services' own tables, and
//! every cell of it is tried: with each kind of caller, against the check that servers make.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fmt::Write as _, path::PathBuf};
use weft_rpc::{Admit, Caller, MethodRoles};
use weft_tls::PeerIdentity;

const SERVICES: [(&str, MethodRoles); 5] = [
    ("Identity, port 7301", weft_identity::ROLES),
    ("Placement, port 7302", weft_placement::ROLES),
    ("Policy, port 7303", weft_policy::ROLES),
    ("Agent of a node, port 7304", weft_agent::ROLES),
    ("Hubble's API of a node, port 4244", weft_agent::HUBBLE_ROLES),
];

const HEAD: &str = "\
# Who may call what

Callers are known by their certificates, or by the socket that they come by; no message and no header
says who calls. A method that is in no table admits nobody. Every role of Weft may ask for health
and reflection; a workload's certificate admits to nothing but what needs no certificate.

This page is written from the servers' own tables: `WEFT_WRITE_DOCS=1 cargo test -p weft-process-tests
--test roles`. A test compares it with them and tries every cell.
";

/// A column's title, the SPIFFE path of such a caller (none: no certificate), and what it may be let
/// in as.
const COLUMNS: [(&str, Option<&str>); 8] = [
    ("no certificate", None),
    ("workload", Some("/ns/shop/cart")),
    ("node", Some("/weft/node/n1")),
    ("identity", Some("/weft/service/identity")),
    ("placement", Some("/weft/service/placement")),
    ("policy", Some("/weft/service/policy")),
    ("operator", Some("/weft/admin/ops")),
    ("local socket", None),
];

fn caller(title: &str, path: Option<&str>) -> Caller {
    match path {
        Some(path) => Caller::Tls(PeerIdentity {
            id: format!("spiffe://cluster.local{path}").parse().unwrap(),
            serial: "1".into(),
            node: None,
            not_before: 0,
            not_after: 1,
        }),
        None if title == "local socket" => Caller::Local { uid: 0 },
        None => Caller::Anonymous,
    }
}

/// What a table says of a column, read by itself rather than by the server's check.
fn says(admits: &[Admit], title: &str) -> bool {
    admits.iter().any(|admit| match admit {
        Admit::Anonymous => true,
        Admit::Service(name) => *name == title,
        Admit::AnyService => ["identity", "placement", "policy"].contains(&title),
        Admit::Node => title == "node",
        Admit::Admin => title == "operator",
        Admit::Local => title == "local socket",
        // Only where an agent was told to serve without TLS on loopback; no column of its own.
        Admit::Loopback => false,
    })
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    for (name, roles) in SERVICES {
        let titles: Vec<_> = COLUMNS.iter().map(|(title, _)| *title).collect();
        write!(page, "\n## {name}\n\n| method | {} |\n|---|", titles.join(" | ")).unwrap();
        page.push_str(&"---|".repeat(COLUMNS.len()));
        page.push('\n');
        for (method, admits) in roles.0 {
            write!(page, "| `{}` |", method.trim_start_matches('/')).unwrap();
            for title in &titles {
                page.push_str(if says(admits, title) { " yes |" } else { " |" });
            }
            page.push('\n');
        }
    }
    page
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/roles.md")
}

#[test]
fn the_page_is_what_the_tables_say() {
    let page = page();
    if std::env::var_os("WEFT_WRITE_DOCS").is_some() {
        std::fs::write(file(), &page).unwrap();
    }
    let written = std::fs::read_to_string(file()).unwrap_or_default();
    let stale = "docs/roles.md is stale: WEFT_WRITE_DOCS=1 cargo test -p weft-process-tests --test roles";
    assert!(written == page, "{stale}");
}

/// From the page to the servers' check: every cell, with a caller of that kind.
#[test]
fn every_cell_of_the_page_is_true() {
    let page = std::fs::read_to_string(file()).unwrap();
    let (mut cells, mut admitted) = (0, 0);
    for line in page.lines().filter_map(|l| l.strip_prefix("| `")) {
        let (method, row) = line.split_once("` |").unwrap();
        let method = format!("/{method}");
        let (_, roles) = SERVICES
            .iter()
            .find(|(_, roles)| roles.0.iter().any(|(m, _)| *m == method))
            .unwrap_or_else(|| panic!("{method} is no method"));
        let row: Vec<&str> = row.split('|').map(str::trim).collect();
        for ((title, path), cell) in COLUMNS.iter().zip(row) {
            let checked = roles.check(&method, &caller(title, *path));
            assert_eq!(checked.is_ok(), cell == "yes", "{method} by {title}: {checked:?}");
            cells += 1;
            admitted += usize::from(checked.is_ok());
        }
    }
    let methods: usize = SERVICES.iter().map(|(_, roles)| roles.0.len()).sum();
    assert_eq!(cells, methods * COLUMNS.len());
    assert!(
        admitted > methods / 2 && admitted < cells / 2,
        "{admitted} of {cells}"
    );
}

/// What is open to anybody is a short list, and known.
#[test]
fn only_what_brings_its_own_proof_is_open_without_a_certificate() {
    let all = SERVICES.iter().flat_map(|(_, roles)| roles.0);
    let open: Vec<_> = all
        .filter(|(_, admits)| admits.contains(&Admit::Anonymous))
        .map(|(method, _)| *method)
        .collect();
    assert_eq!(
        open,
        [
            "/weft.identity.v1.Bootstrap/Join",
            "/weft.identity.v1.Bootstrap/Attest",
            "/dapr.proto.sentry.v1.CA/SignCertificate",
        ]
    );
}
