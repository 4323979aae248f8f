//! Answers of an API server that are nearly right: what is read of them is called as it is called, and
//! what is kept of it can be read again.

use super::{
    object::{Item, key_of, place, read, reread},
    wire::{Event, Page},
};
use weft_fuzz::Corpus;
use weft_resources::Kind;

const ITEM: &str = r#"{"metadata":{"name":"a","namespace":"shop","uid":"1","resourceVersion":"7","generation":2,
"annotations":{"x":"y"},"managedFields":[{"manager":"kubectl"}]},"spec":{"ports":[{"port":80}]},"status":{}}"#;

type Read = fn(Kind, &'static str, &str) -> Result<Item, String>;

fn corpus() -> Corpus {
    let page = format!(r#"{{"metadata":{{"resourceVersion":"9","continue":"x"}},"items":[{ITEM},{ITEM}]}}"#);
    let event = format!(r#"{{"type":"MODIFIED","object":{ITEM}}}"#);
    Corpus::of([ITEM.to_owned(), page, event]).words([
        "{}",
        "[]",
        "null",
        "\"",
        ":",
        ",",
        "1e9",
        "\"name\"",
        "\"metadata\"",
        "\\u0000",
        "/",
        " ",
    ])
}

fn holds(read: Read, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let page = serde_json::from_str::<Page<'_>>(text).ok();
    let event = serde_json::from_str::<Event<'_>>(text).ok();
    let items = page.and_then(|p| p.items).unwrap_or_default();
    let raw = items
        .iter()
        .map(|i| i.get())
        .chain(event.iter().map(|e| e.object.get()));
    for raw in raw.chain([text]) {
        let Ok(item) = read(Kind::Service, "v1", raw) else {
            continue;
        };
        assert_eq!(key_of(&item.reading.path), Some(item.key.clone()));
        assert_eq!(place(&item.key), item.reading.path);
        let content = item.reading.content.expect("an object that is there");
        if let Ok(resources) = content.parsed {
            assert_eq!(reread(&item.reading.path, &content.bytes), Ok(resources));
        }
    }
}

#[test]
fn fuzz_answer() {
    weft_fuzz::target!(corpus(), |bytes: &[u8]| holds(read, bytes));
}

#[test]
fn the_target_notices_a_name_that_is_not_checked() {
    fn careless(kind: Kind, api_version: &'static str, raw: &str) -> Result<Item, String> {
        let mut item = read(kind, api_version, raw)?;
        if raw.contains("null") {
            item.reading.path = item.reading.path.replace('/', "");
        }
        Ok(item)
    }
    assert!(weft_fuzz::finds!(20_000, corpus(), |bytes: &[u8]| holds(
        careless, bytes
    )));
}
