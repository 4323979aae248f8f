//! Objects that operators applied by orders. They are in no file: the service's database has them, as
//! JSON, and who takes over the database takes them over. No I/O here.
//!
//! An object is in a file or applied, never both: what a file has is not applied, and a file that says
//! something about an applied object waits with all that it says, as for an object of another file.

use crate::{
    cluster,
    files::{Change, File, Files, share},
    store::Write,
    world::ObjectKey,
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use weft_proto::weft::policy::v1::Outcome;
use weft_resources::{Problem, Resource};

/// Among the owners of objects, instead of a file's path; no path is empty.
pub(crate) const APPLIED: &str = "";

/// So many objects are kept, of so many bytes together.
const MAX_OBJECTS: usize = 50_000;
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// What the service's database has.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    objects: BTreeMap<ObjectKey, Arc<Resource>>,
    bytes: usize,
}

impl Applied {
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.objects.values()
    }

    fn insert(&mut self, key: ObjectKey, resource: Arc<Resource>) {
        self.bytes += resource.json.len();
        if let Some(old) = self.objects.insert(key, resource) {
            self.bytes -= old.json.len();
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let Some(old) = self.objects.remove(key) {
            self.bytes -= old.json.len();
        }
    }
}

/// As an object is kept: with its namespace, without what a cluster or this service writes into it.
pub(crate) fn kept(mut resource: Resource) -> Resource {
    let Ok(mut json) = serde_json::from_str::<Value>(&resource.json) else {
        return resource;
    };
    if let Some(meta) = json["metadata"].as_object_mut() {
        for field in [
            "creationTimestamp",
            "generation",
            "managedFields",
            "resourceVersion",
            "selfLink",
            "uid",
        ] {
            meta.remove(field);
        }
        if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        if !resource.meta.namespace.is_empty() {
            meta.insert("namespace".into(), resource.meta.namespace.clone().into());
        }
    }
    (resource.meta.created, resource.meta.generation) = (None, None);
    resource.json = json.to_string().into();
    resource
}

/// What positions name of an object that is in no file.
fn place(key: &ObjectKey) -> String {
    format!("{} (applied)", cluster::place(key))
}

impl Files {
    /// Puts in force what was applied before a restart. What this version can not read is a file with
    /// mistakes, and stays in the database.
    pub(crate) fn restore_applied(
        &mut self,
        stored: Vec<(ObjectKey, String)>,
    ) -> Vec<(ObjectKey, Arc<Resource>)> {
        let mut restored = Vec::new();
        for (key, json) in stored {
            let place = place(&key);
            match cluster::reread(&place, json.as_bytes())
                .map(share)
                .map(|mut r| r.pop())
            {
                Ok(Some(resource)) if ObjectKey::of(&resource) == key => {
                    self.own(key.clone(), APPLIED);
                    self.applied.insert(key.clone(), resource.clone());
                    restored.push((key, resource));
                }
                Ok(_) => {}
                Err(problems) => self.put_bad(place, problems),
            }
        }
        restored
    }

    /// What would become of each object, or why none of them is taken.
    pub(crate) fn plan_apply(&self, resources: &[Arc<Resource>]) -> Result<Vec<Outcome>, Vec<Problem>> {
        let outcome = |resource: &Arc<Resource>| {
            let key = ObjectKey::of(resource);
            match self.owner(&key) {
                Some(APPLIED) => {}
                Some(file) => {
                    return Err(Problem {
                        file: resource.origin.file.to_string(),
                        line: resource.origin.line,
                        path: "metadata.name".into(),
                        text: format!(
                            "{} {} is in {file}, a file of the policy service's folder: change it there",
                            resource.kind(),
                            resource.meta
                        ),
                    });
                }
                None => return Ok(Outcome::Created),
            }
            let same = self.applied.objects.get(&key).is_some_and(|old| {
                let value = |r: &Resource| serde_json::from_str::<Value>(&r.json).ok();
                old.json == resource.json || value(old) == value(resource)
            });
            Ok(if same {
                Outcome::Unchanged
            } else {
                Outcome::Configured
            })
        };
        let (mut outcomes, mut problems) = (Vec::new(), Vec::new());
        for resource in resources {
            match outcome(resource) {
                Ok(outcome) => outcomes.push(outcome),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(outcomes)
        } else {
            Err(problems)
        }
    }

    /// Why there is no room for these.
    pub(crate) fn no_room_for(&self, resources: &[Arc<Resource>]) -> Option<String> {
        let new = resources
            .iter()
            .filter(|r| !self.applied.objects.contains_key(&ObjectKey::of(r)));
        let bytes: usize = resources.iter().map(|r| r.json.len()).sum();
        if self.applied.objects.len() + new.count() > MAX_OBJECTS {
            return Some(format!(
                "{MAX_OBJECTS} objects are applied already; delete some, or write them into files"
            ));
        }
        (self.applied.bytes + bytes > MAX_BYTES).then(|| {
            format!(
                "what is applied may have {MAX_BYTES} bytes; delete some objects, or write them into files"
            )
        })
    }

    /// Puts planned objects in force.
    pub(crate) fn apply_objects(&mut self, resources: Vec<Arc<Resource>>) -> Vec<Change> {
        let mut changes = Vec::new();
        for resource in resources {
            let key = ObjectKey::of(&resource);
            self.remove_bad(&place(&key));
            self.own(key.clone(), APPLIED);
            self.applied.insert(key.clone(), resource.clone());
            changes.push((key, Some(resource)));
        }
        changes
    }

    /// Which of the objects are there to be deleted, or why none is.
    pub(crate) fn plan_delete(&self, keys: &[ObjectKey]) -> Result<Vec<Outcome>, Vec<String>> {
        let mut problems = Vec::new();
        let mut outcomes = Vec::new();
        for key in keys {
            match self.owner(key) {
                Some(APPLIED) => outcomes.push(Outcome::Deleted),
                Some(file) => problems.push(format!(
                    "{} is in {file}, a file of the policy service's folder: remove it there",
                    cluster::place(key)
                )),
                None if self.is_bad(&place(key)) => outcomes.push(Outcome::Deleted),
                None => outcomes.push(Outcome::NotFound),
            }
        }
        if problems.is_empty() {
            Ok(outcomes)
        } else {
            Err(problems)
        }
    }

    /// Lets objects go. A file that waited for one of them may be in force now, and is to be stored.
    pub(crate) fn delete_objects(&mut self, keys: &[ObjectKey]) -> (Vec<Change>, Vec<Write>) {
        let mut changes = Vec::new();
        for key in keys {
            self.remove_bad(&place(key));
            if self.owner(key) == Some(APPLIED) {
                self.applied.remove(key);
                self.disown_one(key);
                changes.push((key.clone(), None));
            }
        }
        let (more, writes) = self.settle();
        changes.extend(more);
        (changes, writes)
    }

    fn put_bad(&mut self, place: String, problems: Vec<Problem>) {
        self.files.insert(place, File::bad(problems));
    }

    fn remove_bad(&mut self, place: &str) {
        self.files.remove(place);
    }

    fn is_bad(&self, place: &str) -> bool {
        self.files.contains_key(place)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::files::{Content, Reading};

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    }

    fn objects(text: &str) -> Vec<Arc<Resource>> {
        let all = weft_resources::parse("order.yaml", text.as_bytes()).unwrap();
        all.into_iter().map(kept).map(Arc::new).collect()
    }

    fn reading(path: &str, text: &str) -> Reading {
        let parsed = weft_resources::parse(path, text.as_bytes());
        Reading {
            path: path.into(),
            content: Some(Content {
                bytes: text.into(),
                parsed,
            }),
        }
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::of(&objects(&service(name, 1))[0])
    }

    #[test]
    fn an_object_is_created_then_configured_then_unchanged() {
        let mut files = Files::default();
        let (one, other) = (objects(&service("a", 1)), objects(&service("a", 2)));
        assert_eq!(files.plan_apply(&one), Ok(vec![Outcome::Created]));
        files.apply_objects(one.clone());
        assert_eq!(files.plan_apply(&one), Ok(vec![Outcome::Unchanged]));
        assert_eq!(files.plan_apply(&other), Ok(vec![Outcome::Configured]));
        // What a cluster writes into an object is no change of it.
        let shown = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: default, uid: x, generation: 3, \
             creationTimestamp: '2020-01-01T00:00:00Z'}\nspec: {ports: [{port: 1}]}\n";
        assert_eq!(files.plan_apply(&objects(shown)), Ok(vec![Outcome::Unchanged]));
        assert_eq!(
            files.plan_delete(&[key("a"), key("b")]),
            Ok(vec![Outcome::Deleted, Outcome::NotFound])
        );
        let (changes, writes) = files.delete_objects(&[key("a"), key("b")]);
        assert_eq!((changes, writes.len()), (vec![(key("a"), None)], 0));
        assert_eq!((files.applied.bytes, files.applied.objects.len()), (0, 0));
    }

    #[test]
    fn an_object_is_in_a_file_or_applied() {
        let mut files = Files::default();
        files.apply(vec![reading("1.yaml", &service("a", 1))]);
        // Not what a file has, and then nothing of the order.
        let problems = files
            .plan_apply(&objects(&(service("b", 1) + "---\n" + &service("a", 2))))
            .unwrap_err();
        assert_eq!(
            problems[0].to_string(),
            "order.yaml:6: metadata.name: Service default/a is in 1.yaml, a file of the policy service's folder: change it there"
        );
        let problems = files.plan_delete(&[key("b"), key("a")]).unwrap_err();
        assert_eq!(
            problems,
            ["Service default/a is in 1.yaml, a file of the policy service's folder: remove it there"]
        );
        // A file that has what was applied waits, and comes into force when that is deleted.
        files.apply_objects(objects(&service("b", 1)));
        let (changes, _) = files.apply(vec![reading(
            "2.yaml",
            &(service("b", 2) + "---\n" + &service("c", 2)),
        )]);
        assert!(changes.is_empty());
        let problem = files.rejected_statuses().next().unwrap().errors.pop().unwrap();
        assert_eq!(
            problem,
            "2.yaml:1: metadata.name: Service default/b was applied; weft delete removes it there"
        );
        let (changes, writes) = files.delete_objects(&[key("b")]);
        let now: Vec<_> = changes
            .iter()
            .map(|(k, r)| (k.name.as_str(), r.is_some()))
            .collect();
        assert_eq!(
            (now, writes.len()),
            (vec![("b", false), ("b", true), ("c", true)], 1)
        );
        assert_eq!(files.bad_files(), 0);
    }

    #[test]
    fn what_was_applied_is_in_force_after_a_restart() {
        let mut files = Files::default();
        let stored = objects(&service("a", 1));
        let stored = vec![
            (key("a"), stored[0].json.to_string()),
            (key("b"), "{}".to_owned()),
        ];
        assert_eq!(files.restore_applied(stored).len(), 1);
        assert_eq!(
            files.plan_apply(&objects(&service("a", 1))),
            Ok(vec![Outcome::Unchanged])
        );
        // One that can not be read is told, and goes by an order that writes or deletes it.
        let told = files.rejected_statuses().next().unwrap();
        assert_eq!(told.name, "Service default/b (applied)");
        assert_eq!(files.plan_delete(&[key("b")]), Ok(vec![Outcome::Deleted]));
        files.apply_objects(objects(&service("b", 1)));
        assert_eq!(files.bad_files(), 0);
    }

    #[test]
    fn there_is_a_bound() {
        let mut files = Files::default();
        files.applied.bytes = MAX_BYTES - 10;
        let one = objects(&service("a", 1));
        assert!(files.no_room_for(&one).unwrap().contains("bytes"));
        files.applied.bytes = 0;
        assert_eq!(files.no_room_for(&one), None);
    }
}
