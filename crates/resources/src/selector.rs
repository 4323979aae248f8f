//! Label selectors as Kubernetes and Cilium write them.

use crate::fields::{Field, Problems};

/// A label's key as policies write it: `k8s:app`, `reserved:host`, or `app` (also `any:app`), which
/// matches the key of any source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelKey {
    /// Without the colon; absent for any source.
    pub source: Option<String>,
    /// The key without its source.
    pub name: String,
}

impl LabelKey {
    /// Splits at the first colon.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some(("any" | "", name)) => Self {
                source: None,
                name: name.into(),
            },
            Some((source, name)) => Self {
                source: Some(source.into()),
                name: name.into(),
            },
            None => Self {
                source: None,
                name: text.into(),
            },
        }
    }
}

/// Labels that a workload must have. All parts must hold; without any, every workload is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// `matchLabels` and `matchExpressions`.
    pub requirements: Vec<Requirement>,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: LabelKey,
    /// How its value is compared.
    pub operator: Operator,
    /// Values of `In` and `NotIn`.
    pub values: Vec<String>,
}

/// How [`Requirement`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// The label is there and has one of the values.
    In,
    /// The label is not there or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

pub(crate) fn selector(field: &Field<'_>, problems: &mut Problems) -> Option<LabelSelector> {
    let mut object = field.object(problems)?;
    let mut requirements = Vec::new();
    for (key, value) in object
        .take("matchLabels")
        .and_then(|f| f.text_map(problems))
        .unwrap_or_default()
    {
        let key = LabelKey::parse(&key);
        requirements.push(Requirement {
            key,
            operator: Operator::In,
            values: vec![value],
        });
    }
    for f in object
        .take("matchExpressions")
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
    {
        requirements.extend(expression(&f, problems));
    }
    object.finish(problems);
    Some(LabelSelector { requirements })
}

fn expression(field: &Field<'_>, problems: &mut Problems) -> Option<Requirement> {
    let mut object = field.object(problems)?;
    let key = object
        .need("key", problems)
        .and_then(|f| f.text(problems))
        .map(|k| LabelKey::parse(&k));
    let operator = object.need("operator", problems).and_then(|f| {
        let text = f.text(problems)?;
        let operator = match text.as_str() {
            "In" => Some(Operator::In),
            "NotIn" => Some(Operator::NotIn),
            "Exists" => Some(Operator::Exists),
            "DoesNotExist" => Some(Operator::DoesNotExist),
            _ => None,
        };
        if operator.is_none() {
            f.fail(
                problems,
                format_args!("{text:?} is none of In, NotIn, Exists, DoesNotExist"),
            );
        }
        operator
    });
    let values = object
        .take("values")
        .and_then(|f| f.texts(problems))
        .unwrap_or_default();
    object.finish(problems);
    let operator = operator?;
    let wants = matches!(operator, Operator::In | Operator::NotIn);
    if wants == values.is_empty() {
        let text = if wants {
            "In and NotIn need values"
        } else {
            "Exists and DoesNotExist take no values"
        };
        field.fail(problems, text);
        return None;
    }
    Some(Requirement {
        key: key?,
        operator,
        values,
    })
}
