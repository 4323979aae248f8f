//! Secret stores.

use crate::Shown;
use weft_components_api::SecretStore;

/// A store that holds these and nothing else, each with one value of its own name.
pub async fn conforms(store: &dyn SecretStore, secrets: &[(&str, &str)]) -> Shown {
    for (name, value) in secrets {
        let secret = store.get((*name).to_owned(), Vec::new()).await.unwrap();
        assert_eq!(secret.len(), 1, "{name}");
        assert_eq!(secret.get(*name).map(String::as_str), Some(*value));
    }
    let all = store.bulk(Vec::new()).await.unwrap();
    let names: Vec<&str> = all.keys().map(String::as_str).collect();
    let mut wanted: Vec<&str> = secrets.iter().map(|(name, _)| *name).collect();
    wanted.sort_unstable();
    assert_eq!(names, wanted);
    for (name, value) in secrets {
        assert_eq!(all[*name].get(*name).map(String::as_str), Some(*value));
    }
    vec!["get", "bulk"]
}
