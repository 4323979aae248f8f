//! What one certificate takes of a core, without transport and record: `cargo bench -p weft-identity`.
#![allow(clippy::unwrap_used, missing_docs)]

use divan::{Bencher, black_box};
use std::time::Duration;
use weft_identity::{Authority, KeyType, Maker, Order, public_key};
use weft_model::TrustDomain;

const NOW: u64 = 1_800_000_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

fn main() {
    divan::main();
}

/// The request is read, and its signature shows who holds the key.
#[divan::bench]
fn request_checked(bencher: Bencher<'_, '_>) {
    let csr = weft_tls::new_key_and_csr().unwrap().csr_der;
    bencher.bench(|| public_key(black_box(&csr)).unwrap());
}

/// The certificate is made and signed.
#[divan::bench(args = [KeyType::P256, KeyType::Ed25519])]
fn leaf_signed(bencher: Bencher<'_, '_>, key_type: KeyType) {
    let maker = Maker {
        trust_domain: TrustDomain::default(),
        key_type,
        root_lifetime: 3650 * DAY,
        issuer_lifetime: 365 * DAY,
    };
    let root = maker.root(NOW).unwrap();
    let issuer = maker.issuer(&root.cert, &root.key, NOW).unwrap();
    let authority = Authority::new(1, &issuer.cert, None, &issuer.key, NOW).unwrap();
    let key = public_key(&weft_tls::new_key_and_csr().unwrap().csr_der).unwrap();
    let id = TrustDomain::default().workload("default", "cart").unwrap();
    let order = Order {
        id: &id,
        node: Some("n1"),
        lifetime: DAY,
        earliest: 0,
        key: &key,
    };
    bencher.bench(|| authority.issue(black_box(&order), NOW).unwrap());
}
