//! When each object was seen first, and how often its content changed since: what a cluster's API
//! server writes as `creationTimestamp` and `generation`, kept across restarts. What an object says of
//! itself counts more. Also what is shown of each object.

use super::ObjectKey;
use crate::store::Write;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use weft_resources::Resource;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    created: u64,
    generation: u64,
    digest: u64,
    /// When this generation began, as far as this process knows.
    changed: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    entries: BTreeMap<ObjectKey, Entry>,
    objects: BTreeMap<ObjectKey, Arc<Resource>>,
    /// Those that were removed, or are not there yet after a restart, since the last sweep.
    absent: BTreeSet<ObjectKey>,
    writes: Vec<Write>,
}

impl Seen {
    pub(super) fn restore(&mut self, key: ObjectKey, created: u64, generation: u64, digest: u64) {
        let entry = Entry {
            created,
            generation,
            digest,
            changed: created,
        };
        self.absent.insert(key.clone());
        self.entries.insert(key, entry);
    }

    pub(super) fn set(&mut self, key: &ObjectKey, resource: Option<&Arc<Resource>>, now: u64) {
        // A file that hands an object over to another one removes it first: what was seen of it stays
        // until the sweep.
        let Some(resource) = resource else {
            self.objects.remove(key);
            self.absent.insert(key.clone());
            return;
        };
        self.objects.insert(key.clone(), resource.clone());
        let digest = digest(&resource.json);
        let entry = self.entries.entry(key.clone()).or_insert(Entry {
            created: now,
            generation: 0,
            digest: 0,
            changed: now,
        });
        if entry.generation == 0 || entry.digest != digest {
            entry.generation += 1;
            (entry.digest, entry.changed) = (digest, now);
            self.writes.push(Write::Object {
                key: key.clone(),
                created: entry.created,
                generation: entry.generation,
                digest,
            });
        }
    }

    /// Forgets objects that are gone. Returns what is to be stored of all changes since the last call.
    pub(super) fn sweep(&mut self) -> Vec<Write> {
        for key in std::mem::take(&mut self.absent) {
            if !self.objects.contains_key(&key) && self.entries.remove(&key).is_some() {
                self.writes.push(Write::RemoveObject { key });
            }
        }
        std::mem::take(&mut self.writes)
    }

    /// Seconds since the Unix epoch.
    pub(super) fn created(&self, key: &ObjectKey) -> u64 {
        let said = self.objects.get(key).and_then(|r| r.meta.created);
        said.or_else(|| self.entries.get(key).map(|e| e.created))
            .unwrap_or_default()
    }

    /// Grows with each change of the content.
    pub(super) fn generation(&self, key: &ObjectKey) -> u64 {
        let said = self.objects.get(key).and_then(|r| r.meta.generation);
        said.or_else(|| self.entries.get(key).map(|e| e.generation))
            .unwrap_or_default()
    }

    /// Since when its content is what it is.
    pub(super) fn changed(&self, key: &ObjectKey) -> u64 {
        self.entries.get(key).map(|e| e.changed).unwrap_or_default()
    }

    pub(super) fn object(&self, key: &ObjectKey) -> Option<&Arc<Resource>> {
        self.objects.get(key)
    }

    /// From this key on, in order.
    pub(super) fn after<'s>(
        &'s self,
        after: Option<&ObjectKey>,
    ) -> impl Iterator<Item = (&'s ObjectKey, &'s Arc<Resource>)> + use<'s> {
        let from = match after {
            Some(key) => std::ops::Bound::Excluded(key.clone()),
            None => std::ops::Bound::Unbounded,
        };
        self.objects.range((from, std::ops::Bound::Unbounded))
    }
}

/// Of what the object wants: not of its names and labels.
fn digest(json: &str) -> u64 {
    let mut value: Value = serde_json::from_str(json).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        for field in ["apiVersion", "kind", "metadata"] {
            object.remove(field);
        }
    }
    super::addresses::fnv(value.to_string().bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn service(port: u16, meta: &str) -> Arc<Resource> {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a{meta}}}\nspec: {{ports: [{{port: {port}}}]}}"
        );
        Arc::new(weft_resources::parse("f", text.as_bytes()).unwrap().remove(0))
    }

    #[test]
    fn times_and_generations_hold_over_reloads_and_restarts() {
        let mut seen = Seen::default();
        let key = ObjectKey::of(&service(80, ""));
        let at = |seen: &Seen| (seen.created(&key), seen.generation(&key));
        seen.set(&key, Some(&service(80, "")), 10);
        assert_eq!((at(&seen), seen.sweep().len()), ((10, 1), 1));
        // The same again, then with a label, then with another content.
        seen.set(&key, Some(&service(80, "")), 20);
        seen.set(&key, Some(&service(80, ", labels: {a: b}")), 20);
        assert_eq!((at(&seen), seen.sweep().len()), ((10, 1), 0));
        seen.set(&key, Some(&service(81, "")), 30);
        assert_eq!(at(&seen), (10, 2));
        let Some(Write::Object {
            created,
            generation,
            digest,
            ..
        }) = seen.sweep().pop()
        else {
            panic!("not stored")
        };
        let mut later = Seen::default();
        later.restore(key.clone(), created, generation, digest);
        later.set(&key, Some(&service(81, "")), 99);
        assert_eq!((at(&later), later.sweep().len()), ((10, 2), 0));
        // Moved from file to file within one reading: still the same object.
        later.set(&key, None, 100);
        later.set(&key, Some(&service(81, "")), 100);
        assert_eq!((at(&later), later.sweep().len()), ((10, 2), 0));
        // Gone and back: another one.
        later.set(&key, None, 101);
        assert_eq!(later.sweep().len(), 1);
        later.set(&key, Some(&service(81, "")), 102);
        assert_eq!(at(&later), (102, 1));
        // What it says of itself counts more.
        let said = ", creationTimestamp: '1970-01-01T00:01:00Z', generation: 7";
        later.set(&key, Some(&service(81, said)), 103);
        assert_eq!(at(&later), (60, 7));
    }
}
