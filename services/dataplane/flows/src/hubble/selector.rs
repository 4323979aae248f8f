//! Label selectors as Kubernetes writes them, with a source before a key where one is meant:
//! `app=cart`, `k8s:app in (a,b),!old`, `reserved:world`.

/// Longest selector that is read.
const MAX_BYTES: usize = 4096;
/// Longest key, with its source, and longest value.
const MAX_WORD: usize = 512;

/// Why a selector can not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label selector {text:?}: {what}")]
pub struct SelectorError {
    text: String,
    what: String,
}

/// All of its requirements hold, or it does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    /// `None`: of any source.
    source: Option<String>,
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    Exists,
    Missing,
    In(Vec<String>),
    /// Also what has no such label.
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
}

impl Selector {
    /// Reads one. The empty one matches everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let fail = |what: String| SelectorError {
            text: text.chars().take(64).collect(),
            what,
        };
        if text.len() > MAX_BYTES {
            return Err(fail(format!("longer than {MAX_BYTES} bytes")));
        }
        let mut rest = Words(text);
        let mut requirements = Vec::new();
        if rest.is_empty() {
            return Ok(Self(requirements));
        }
        loop {
            requirements.push(requirement(&mut rest).map_err(fail)?);
            if rest.is_empty() {
                return Ok(Self(requirements));
            }
            if !rest.take(",") {
                return Err(fail(format!("expected a comma before {:?}", rest.shown())));
            }
        }
    }

    /// Whether `labels` (`source:key=value`) are meant.
    pub fn matches(&self, labels: &[String]) -> bool {
        self.0.iter().all(|r| r.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &[String]) -> bool {
        let mut values = labels.iter().filter_map(|label| self.value(label));
        match &self.operator {
            Operator::Exists => values.next().is_some(),
            Operator::Missing => values.next().is_none(),
            Operator::In(wanted) => values.any(|v| wanted.iter().any(|w| w == v)),
            Operator::NotIn(unwanted) => !values.any(|v| unwanted.iter().any(|u| u == v)),
            Operator::Greater(than) => values.any(|v| v.parse::<i64>().is_ok_and(|v| v > *than)),
            Operator::Less(than) => values.any(|v| v.parse::<i64>().is_ok_and(|v| v < *than)),
        }
    }

    /// The value of a label that has this key.
    fn value<'a>(&self, label: &'a str) -> Option<&'a str> {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        let (source, key) = match name.split_once(':') {
            Some((source, key)) => (source, key),
            None => ("", name),
        };
        let wanted = self.source.as_deref().is_none_or(|wanted| wanted == source);
        (wanted && key == self.key).then_some(value)
    }
}

fn requirement(rest: &mut Words<'_>) -> Result<Requirement, String> {
    let missing = rest.take("!");
    let word = rest.word()?;
    let (source, key) = match word.split_once(':') {
        // What a selector of Cilium writes for "of any source".
        Some(("any", key)) => (None, key),
        Some((source, key)) => (Some(source.to_owned()), key),
        None => (None, word),
    };
    if key.is_empty() || source.as_ref().is_some_and(String::is_empty) || key.contains(':') {
        return Err(format!("{word:?} is no key"));
    }
    let operator = if missing {
        Operator::Missing
    } else if rest.take("==") || rest.take("=") {
        Operator::In(vec![rest.value()?])
    } else if rest.take("!=") {
        Operator::NotIn(vec![rest.value()?])
    } else if rest.take(">") {
        Operator::Greater(rest.number()?)
    } else if rest.take("<") {
        Operator::Less(rest.number()?)
    } else if rest.take_word("notin") {
        Operator::NotIn(rest.list()?)
    } else if rest.take_word("in") {
        Operator::In(rest.list()?)
    } else {
        Operator::Exists
    };
    Ok(Requirement {
        source,
        key: key.to_owned(),
        operator,
    })
}

/// What is left to read.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn skip(&mut self) {
        self.0 = self.0.trim_start();
    }

    fn is_empty(&mut self) -> bool {
        self.skip();
        self.0.is_empty()
    }

    fn shown(&self) -> String {
        self.0.chars().take(16).collect()
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip();
        let taken = self.0.strip_prefix(token);
        self.0 = taken.unwrap_or(self.0);
        taken.is_some()
    }

    /// `word`, and no longer one that begins so.
    fn take_word(&mut self, word: &str) -> bool {
        self.skip();
        let Some(after) = self.0.strip_prefix(word) else {
            return false;
        };
        if !after.starts_with(|c: char| c.is_whitespace() || c == '(') {
            return false;
        }
        self.0 = after;
        true
    }

    /// Characters of keys and values.
    fn run(&mut self) -> Result<&'a str, String> {
        self.skip();
        let is_end = |c: char| c.is_whitespace() || matches!(c, ',' | '=' | '!' | '(' | ')' | '<' | '>');
        let end = self.0.find(is_end).unwrap_or(self.0.len());
        let (run, rest) = self.0.split_at(end);
        if run.len() > MAX_WORD {
            return Err(format!("a word is longer than {MAX_WORD} bytes"));
        }
        self.0 = rest;
        Ok(run)
    }

    fn word(&mut self) -> Result<&'a str, String> {
        match self.run()? {
            "" if self.0.is_empty() => Err("a key is missing at the end".into()),
            "" => Err(format!("expected a key before {:?}", self.shown())),
            word => Ok(word),
        }
    }

    /// May be empty: `key=` is a label without a value.
    fn value(&mut self) -> Result<String, String> {
        self.run().map(str::to_owned)
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.run()?;
        word.parse().map_err(|_| format!("{word:?} is no number"))
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        if !self.take("(") {
            return Err("expected values in parentheses".into());
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err("a list of values has no end".into());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels() -> Vec<String> {
        [
            "k8s:app=cart",
            "k8s:tier=3",
            "reserved:world",
            "cidr:10.0.0.0/8=",
            "k8s:empty=",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn what_selectors_mean() {
        for (text, matches) in [
            ("", true),
            ("app=cart", true),
            ("app==cart", true),
            ("app=shop", false),
            ("k8s:app=cart", true),
            ("any:app=cart", true),
            ("container:app=cart", false),
            ("app!=shop", true),
            ("app!=cart", false),
            ("nothing!=x", true),
            ("app", true),
            ("!app", false),
            ("!nothing", true),
            ("reserved:world", true),
            ("reserved:host", false),
            ("app in (shop, cart)", true),
            ("app in (shop)", false),
            ("app notin (shop)", true),
            ("app notin (shop,cart)", false),
            ("inner", false),
            ("tier>2", true),
            ("tier > 3", false),
            ("tier<4,app=cart", true),
            ("tier<4,app=shop", false),
            ("empty=", true),
            (" app = cart , k8s:tier ", true),
        ] {
            assert_eq!(
                Selector::parse(text).unwrap().matches(&labels()),
                matches,
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_none_is_named() {
        for (text, says) in [
            (",", "key"),
            ("app=cart,", "missing at the end"),
            ("app in cart", "parentheses"),
            ("app in (cart", "no end"),
            ("=cart", "key"),
            ("tier>x", "no number"),
            ("a b", "comma"),
            ("a:b:c=d", "no key"),
            (":a", "no key"),
        ] {
            let error = Selector::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        assert!(Selector::parse(&"a".repeat(MAX_BYTES + 1)).is_err());
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(text in any::<String>()) {
            let _ = Selector::parse(&text);
        }

        #[test]
        fn nor_does_what_looks_like_one(text in "[a-c:=!,() <>in]{0,40}") {
            if let Ok(selector) = Selector::parse(&text) {
                let _ = selector.matches(&labels());
            }
        }

        #[test]
        fn a_requirement_and_its_opposite_never_agree(key in "[a-c]", value in "[a-c]", of in "[a-c]", is in "[a-c]") {
            let labels = [format!("k8s:{of}={is}")];
            let says = |text: String| Selector::parse(&text).unwrap().matches(&labels);
            prop_assert_ne!(says(format!("{key}={value}")), says(format!("{key}!={value}")));
            prop_assert_ne!(says(key.clone()), says(format!("!{key}")));
            prop_assert_ne!(
                says(format!("{key} in ({value},x)")),
                says(format!("{key} notin ({value},x)"))
            );
        }
    }
}
