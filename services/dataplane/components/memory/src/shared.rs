//! What apps of a namespace share: one of each per component, for as long as an app has it open.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};
use weft_components_api::Instance;

/// See the module.
pub(crate) struct Shared<T>(Mutex<HashMap<(String, String), Weak<T>>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> Shared<T> {
    /// That of a component.
    pub fn of(&self, instance: &Instance) -> Arc<T> {
        let mut all = self.0.lock();
        all.retain(|_, one| one.strong_count() > 0);
        let key = (instance.owner.namespace.clone(), instance.name.clone());
        let known = all.get(&key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let one = Arc::new(T::default());
            all.insert(key, Arc::downgrade(&one));
            one
        })
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_its_namespaces_and_its_components_own() {
        let shared = Shared::<Mutex<u8>>::default();
        let of = |namespace: &str, component: &str| {
            let mut instance = weft_components_conformance::instance(component, &[]);
            instance.owner.namespace = namespace.to_owned();
            shared.of(&instance)
        };
        let one = of("shop", "bus");
        assert!(Arc::ptr_eq(&one, &of("shop", "bus")));
        assert!(!Arc::ptr_eq(&one, &of("other", "bus")));
        assert!(!Arc::ptr_eq(&one, &of("shop", "other")));
        drop(one);
        of("shop", "another");
        assert_eq!(shared.count(), 1, "unused ones are forgotten");
    }
}
