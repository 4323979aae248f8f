//! What a key begins with at its store, so that apps that share one do not meet.

use weft_components_api::Owner;

/// Between the prefix and the key; no key may hold it.
pub(crate) const SEPARATOR: &str = "||";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyPrefix(String);

impl KeyPrefix {
    /// By the component's `keyPrefix`: `appid` (the default), `namespace`, `name`, `none`, or a text.
    pub fn new(strategy: &str, component: &str, owner: &Owner) -> Result<Self, String> {
        let Owner { namespace, app_id } = owner;
        let strategy = strategy.to_lowercase();
        if strategy.contains(SEPARATOR) {
            return Err(format!(
                "input key/keyPrefix '{strategy}' can't contain '{SEPARATOR}'"
            ));
        }
        Ok(Self(match strategy.as_str() {
            "" | "appid" => format!("{app_id}{SEPARATOR}"),
            "namespace" => format!("{namespace}.{app_id}{SEPARATOR}"),
            "name" => format!("{component}{SEPARATOR}"),
            "none" => String::new(),
            text => format!("{text}{SEPARATOR}"),
        }))
    }

    /// That of locks: beneath `lock`, whatever the strategy.
    pub fn of_locks(strategy: &str, component: &str, owner: &Owner) -> Result<Self, String> {
        let Self(prefix) = Self::new(strategy, component, owner)?;
        Ok(Self(format!("lock{SEPARATOR}{prefix}")))
    }

    /// A key as the store knows it; `None` when the app may not use it.
    pub fn add(&self, key: &str) -> Option<String> {
        (!key.contains(SEPARATOR)).then(|| format!("{}{key}", self.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_strategy_has_its_prefix() {
        let owner = Owner {
            namespace: "shop".into(),
            app_id: "cart".into(),
        };
        let key = |strategy| {
            KeyPrefix::new(strategy, "store", &owner)
                .unwrap()
                .add("k")
                .unwrap()
        };
        for (strategy, wanted) in [
            ("", "cart||k"),
            ("appid", "cart||k"),
            ("AppId", "cart||k"),
            ("namespace", "shop.cart||k"),
            ("name", "store||k"),
            ("none", "k"),
            ("Tenant", "tenant||k"),
        ] {
            assert_eq!(key(strategy), wanted, "{strategy}");
        }
        let lock = |strategy| {
            KeyPrefix::of_locks(strategy, "store", &owner)
                .unwrap()
                .add("k")
                .unwrap()
        };
        assert_eq!(
            (lock(""), lock("none")),
            ("lock||cart||k".into(), "lock||k".into())
        );
        assert!(KeyPrefix::new("a||b", "store", &owner).is_err());
        assert_eq!(
            KeyPrefix::new("none", "store", &owner).unwrap().add("other||k"),
            None
        );
    }
}
