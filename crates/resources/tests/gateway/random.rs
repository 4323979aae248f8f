//! Whatever stands in a file, it is read or refused.

use super::*;
use proptest::prelude::*;
use serde_json::{Map, json};

/// Trees made of names that the kinds know, with values of any shape.
fn tree() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(
        "parentRefs hostnames rules matches path type value headers name method queryParams filters \
         requestHeaderModifier set add remove requestMirror backendRef percent fraction numerator denominator \
         requestRedirect scheme hostname port statusCode replaceFullPath replacePrefixMatch urlRewrite cors \
         backendRefs weight timeouts request backendRequest retry codes attempts backoff service listeners \
         protocol tls mode certificateRefs allowedRoutes namespaces from selector matchLabels kinds group kind \
         namespace sectionName gatewayClassName addresses infrastructure parametersRef controllerName to x"
            .split_whitespace()
            .collect::<Vec<_>>(),
    );
    let texts = prop::sample::select(
        "Exact PathPrefix RegularExpression RequestRedirect URLRewrite RequestMirror RequestHeaderModifier \
         ReplacePrefixMatch Service Gateway HTTPRoute HTTP HTTPS TLS Selector All a a.test *.test / /a// ( 1s 99999h9ms \
         10.0.0.1 é"
            .split_whitespace()
            .collect::<Vec<_>>(),
    );
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![
            Just(0i64),
            Just(80),
            Just(301),
            Just(-1),
            Just(i64::MAX),
            any::<i64>()
        ]
        .prop_map(Value::from),
        texts.prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(8, 96, 6, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => prop::collection::vec((names.clone(), inner), 0..6).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(n, v)| (n.to_owned(), v)).collect::<Map<_, _>>())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_tree_of_known_names_panics(spec in tree(), kind in 0usize..5) {
        let kind = ["GatewayClass", "Gateway", "HTTPRoute", "GRPCRoute", "ReferenceGrant"][kind];
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": "a"}, "spec": spec});
        match parse("a.json", object.to_string().as_bytes()) {
            Ok(all) => prop_assert_eq!(all.len(), 1),
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    prop_assert_eq!(problem.line, 1, "{}", problem);
                    prop_assert!(!problem.to_string().contains('\n'));
                }
            }
        }
    }

    #[test]
    fn damaged_manifests_never_panic(cuts in prop::collection::vec((0usize..4000, "[\\PC\\n]{0,6}"), 1..6)) {
        let mut text = PUBLISHED.to_owned();
        for (at, with) in cuts {
            let mut at = at % (text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let mut end = (at + 3).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            text.replace_range(at..end, &with);
        }
        if let Err(problems) = parse("a.yaml", text.as_bytes()) {
            prop_assert!(!problems.is_empty());
            for p in problems {
                prop_assert!(p.line >= 1 && p.line as usize <= text.lines().count() + 1, "{p}");
            }
        }
    }
}
