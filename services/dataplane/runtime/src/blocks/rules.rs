//! Which of an app's paths an event is for: conditions in CEL over the event, the first that holds.

use super::cloud_event::Event;
use cel::{Context, Program, Value};
use std::{fmt, sync::Arc};

/// Longer conditions are refused.
const MAX_CONDITION: usize = 1024;
/// So are those with more signs that could nest: reading and evaluating both recurse, and what an app
/// writes must not be able to end the agent by it.
const MAX_SIGNS: usize = 64;
/// A condition with no more of them is evaluated where it is asked for.
const FEW_SIGNS: usize = 16;
/// What reading and evaluating so many takes, in a build without optimisation too.
const STACK: usize = 64 * 1024 * 1024;

/// One path and its condition.
#[derive(Clone)]
pub(crate) struct Rule {
    text: String,
    condition: Option<Arc<Program>>,
    deep: bool,
    path: String,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} -> {}", self.text, self.path)
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, &self.path) == (&other.text, &other.path)
    }
}

impl Rule {
    /// An empty condition holds always.
    pub fn new(condition: &str, path: &str) -> Result<Self, String> {
        let text = condition.trim();
        if text.len() > MAX_CONDITION {
            return Err(format!("a condition has more than {MAX_CONDITION} bytes"));
        }
        let condition = match text.is_empty() {
            true => None,
            false => Some(Arc::new(
                compile(text).map_err(|e| format!("condition {text:?}: {e}"))?,
            )),
        };
        Ok(Self {
            text: text.to_owned(),
            condition,
            deep: signs(text) > FEW_SIGNS,
            path: format!("/{}", path.trim_start_matches('/')),
        })
    }

    /// The condition, as it was written.
    pub fn condition(&self) -> &str {
        &self.text
    }

    /// The path.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// What could nest.
fn signs(text: &str) -> usize {
    let signs = text
        .chars()
        .filter(|c| !c.is_alphanumeric() && !c.is_whitespace());
    signs.filter(|c| !matches!(c, '"' | '\'' | '_')).count()
}

/// On a thread of its own, whose stack is made for it.
fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("condition".into())
            .stack_size(STACK);
        let done = thread
            .spawn_scoped(scope, work)
            .map_err(|e| e.to_string())?
            .join();
        done.map_err(|_| "it can not be read".to_owned())
    })
}

fn compile(text: &str) -> Result<Program, String> {
    if signs(text) > MAX_SIGNS {
        return Err(format!(
            "it has more than {MAX_SIGNS} operators, dots and brackets"
        ));
    }
    aside(|| Program::compile(text).map_err(|e| e.to_string()))?
}

/// Several, in their order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules(pub Vec<Rule>);

impl Rules {
    /// The path of an event; none when no rule wants it.
    pub fn find(&self, event: &Event) -> Result<Option<&str>, String> {
        let mut context = None;
        for rule in &self.0 {
            let Some(condition) = &rule.condition else {
                return Ok(Some(&rule.path));
            };
            let context = match &mut context {
                Some(context) => context,
                none => none.insert(with(event)?),
            };
            let context = &*context;
            let execute = || condition.execute(context).map_err(|e| e.to_string());
            let value = match rule.deep {
                true => aside(execute).and_then(|value| value),
                false => execute(),
            };
            match value.map_err(|e| format!("condition {:?}: {e}", rule.text))? {
                Value::Bool(true) => return Ok(Some(&rule.path)),
                Value::Bool(false) => {}
                _ => {
                    let text = &rule.text;
                    return Err(format!("the result of match expression {text} was not a boolean"));
                }
            }
        }
        Ok(None)
    }

    #[cfg(test)]
    pub fn paths(&self) -> Vec<&str> {
        self.0.iter().map(Rule::path).collect()
    }
}

fn with(event: &Event) -> Result<Context<'static, 'static>, String> {
    let mut context = Context::default();
    let added = context.add_variable("event", event);
    added.map_err(|e| format!("the event can not be looked at: {e}"))?;
    Ok(context)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn event(json: serde_json::Value) -> Event {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn the_first_rule_that_holds_is_taken() {
        let rules = Rules(vec![
            Rule::new("event.type == \"order.made\"", "made").unwrap(),
            Rule::new("has(event.data.size) && event.data.size > 10", "/big").unwrap(),
            Rule::new("event.source in [\"shop\", \"bill\"]", "/known").unwrap(),
        ]);
        let path = |json| rules.find(&event(json)).unwrap().map(str::to_owned);
        use serde_json::json;
        assert_eq!(
            path(json!({"type": "order.made", "data": {"size": 50}, "source": "x"})).as_deref(),
            Some("/made")
        );
        assert_eq!(
            path(json!({"type": "t", "data": {"size": 50}, "source": "x"})).as_deref(),
            Some("/big")
        );
        assert_eq!(
            path(json!({"type": "t", "data": {}, "source": "shop"})).as_deref(),
            Some("/known")
        );
        assert_eq!(path(json!({"type": "t", "data": {}, "source": "x"})), None);
        let rest = Rules([rules.0, vec![Rule::new(" ", "/rest").unwrap()]].concat());
        let other = event(json!({"type": "t", "data": {}, "source": "x"}));
        assert_eq!(rest.find(&other), Ok(Some("/rest")));
    }

    #[test]
    fn what_is_no_condition_is_said() {
        assert!(
            Rule::new("event.type ==", "/x")
                .unwrap_err()
                .contains("event.type ==")
        );
        assert!(Rule::new(&"x".repeat(MAX_CONDITION + 1), "/x").is_err());
        // As deep as it goes: read and evaluated, on a small stack as workers have them.
        let half = MAX_SIGNS / 2;
        for deep in [
            format!("{}true{}", "(".repeat(half), ")".repeat(half)),
            format!("{}true", "!".repeat(MAX_SIGNS)),
            format!(
                "[{}1{}] == 1 ? true : true",
                "[".repeat(half - 3),
                "]".repeat(half - 3)
            ),
            format!("1{} == 1 || true", "+1".repeat(MAX_SIGNS - 4)),
            format!("event{} == 1", ".a".repeat(MAX_SIGNS - 2)),
        ] {
            let rules = Rules(vec![Rule::new(&deep, "/x").unwrap()]);
            let _ = rules.find(&event(serde_json::json!({"a": 1})));
            assert!(
                Rule::new(&format!("({deep}) && (true) && (true)"), "/x").is_err(),
                "{deep}"
            );
        }
        let find = |condition: &str| {
            let rules = Rules(vec![Rule::new(condition, "/x").unwrap()]);
            rules
                .find(&event(serde_json::json!({"type": "t"})))
                .map(|p| p.map(str::to_owned))
        };
        assert!(find("event.type").unwrap_err().contains("not a boolean"));
        assert!(find("event.none.deeper == 1").is_err());
        assert_eq!(find("event.type == 't'"), Ok(Some("/x".into())));
    }
}
