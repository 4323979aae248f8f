//! Changing headers as a filter says.

use crate::spec::HeaderEdit;
use http::HeaderMap;

impl HeaderEdit {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Applies it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn removed_then_set_then_added() {
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let mut headers = HeaderMap::new();
        for (header, text) in [
            ("x-gone", "1"),
            ("x-gone", "2"),
            ("x-set", "old"),
            ("x-more", "a"),
        ] {
            headers.append(name(header), value(text));
        }
        let edit = HeaderEdit {
            set: vec![(name("x-set"), value("new"))],
            add: vec![(name("x-more"), value("b")), (name("x-set"), value("newer"))],
            remove: vec![name("x-gone"), name("x-absent")],
        };
        assert!(!edit.is_empty());
        edit.apply(&mut headers);
        let all = |header: &'static str| headers.get_all(header).iter().cloned().collect::<Vec<_>>();
        assert_eq!(all("x-set"), [value("new"), value("newer")]);
        assert_eq!(all("x-more"), [value("a"), value("b")]);
        assert!(all("x-gone").is_empty());
        assert_eq!(headers.len(), 4);
    }
}
