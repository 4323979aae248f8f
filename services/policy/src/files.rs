//! Which object comes from which file, and what of a file is in force. No I/O.
//!
//! A file is in force whole or not at all. A file with a mistake, or one that says something about an
//! object of another file, leaves in force what it said last; the object belongs to the file that had it first.

use crate::{
    applied::{APPLIED, Applied},
    cluster,
    store::Write,
    world::ObjectKey,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{Problem, Resource};

/// What a file says, read anew.
#[derive(Debug)]
pub(crate) struct Reading {
    pub path: String,
    /// Absent when the file is gone.
    pub content: Option<Content>,
}

/// See [`Reading`].
#[derive(Debug)]
pub(crate) struct Content {
    pub bytes: Vec<u8>,
    pub parsed: Result<Vec<Resource>, Vec<Problem>>,
}

/// What is known of a file.
#[derive(Debug, Default)]
pub(crate) struct File {
    /// What it says now, while that is not in force.
    waiting: Option<(Vec<Arc<Resource>>, Vec<u8>)>,
    problems: Vec<Problem>,
    in_force: Vec<Arc<Resource>>,
}

impl File {
    /// One that never was good.
    pub(crate) fn bad(problems: Vec<Problem>) -> Self {
        Self {
            problems,
            ..Self::default()
        }
    }
}

/// An object that changed; absent when it is gone.
pub(crate) type Change = (ObjectKey, Option<Arc<Resource>>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Whether each file is an object of a cluster, called by its kind and name.
    of_cluster: bool,
    pub(crate) files: BTreeMap<String, File>,
    owners: BTreeMap<ObjectKey, String>,
    pub(crate) applied: Applied,
}

impl Files {
    /// For objects of a cluster: each is a file of its own, as far as this is concerned.
    pub(crate) fn of_cluster() -> Self {
        Self {
            of_cluster: true,
            ..Self::default()
        }
    }

    pub(crate) fn is_of_cluster(&self) -> bool {
        self.of_cluster
    }

    /// The path of the file that has an object, or [`APPLIED`].
    pub(crate) fn owner(&self, key: &ObjectKey) -> Option<&str> {
        self.owners.get(key).map(String::as_str)
    }

    pub(crate) fn own(&mut self, key: ObjectKey, owner: &str) {
        self.owners.insert(key, owner.to_owned());
    }

    pub(crate) fn disown_one(&mut self, key: &ObjectKey) {
        self.owners.remove(key);
    }

    /// Objects in force.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &ObjectKey> {
        self.owners.keys()
    }

    /// Puts in force what a file said before a restart, until it is read.
    pub(crate) fn restore(&mut self, path: &str, bytes: &[u8]) -> Vec<Change> {
        let parsed = match self.of_cluster {
            true => cluster::reread(path, bytes),
            false => weft_resources::parse(path, bytes),
        };
        let Ok(resources) = parsed else {
            return Vec::new();
        };
        let file = File {
            waiting: Some((share(resources), Vec::new())),
            ..File::default()
        };
        self.files.insert(path.to_owned(), file);
        self.settle().0
    }

    /// Takes readings over. Returns what changed, and what is to be stored.
    pub(crate) fn apply(&mut self, readings: Vec<Reading>) -> (Vec<Change>, Vec<Write>) {
        let (mut changes, mut writes) = (Vec::new(), Vec::new());
        for Reading { path, content } in readings {
            let Some(content) = content else {
                if let Some(file) = self.files.remove(&path) {
                    changes.extend(self.disown(&file.in_force));
                    writes.push(Write::RemoveGoodFile { path });
                }
                continue;
            };
            let file = self.files.entry(path).or_default();
            match content.parsed {
                Ok(resources) => {
                    file.problems.clear();
                    file.waiting = Some((share(resources), content.bytes));
                }
                Err(problems) => {
                    file.waiting = None;
                    file.problems = problems;
                }
            }
        }
        let (more, stored) = self.settle();
        changes.extend(more);
        writes.extend(stored);
        (changes, writes)
    }

    fn disown(&mut self, resources: &[Arc<Resource>]) -> Vec<Change> {
        let mut changes = Vec::new();
        for resource in resources {
            let key = ObjectKey::of(resource);
            self.owners.remove(&key);
            changes.push((key, None));
        }
        changes
    }

    /// Puts in force what can be. One file that lets go of an object may make room for another.
    pub(crate) fn settle(&mut self) -> (Vec<Change>, Vec<Write>) {
        let (mut changes, mut writes) = (Vec::new(), Vec::new());
        loop {
            let before = changes.len() + writes.len();
            let paths: Vec<String> = self
                .files
                .iter()
                .filter(|(_, f)| f.waiting.is_some())
                .map(|(path, _)| path.clone())
                .collect();
            for path in paths {
                self.try_file(&path, &mut changes, &mut writes);
            }
            if changes.len() + writes.len() == before {
                return (changes, writes);
            }
        }
    }

    fn try_file(&mut self, path: &str, changes: &mut Vec<Change>, writes: &mut Vec<Write>) {
        let Some(file) = self.files.get_mut(path) else {
            return;
        };
        let Some((resources, bytes)) = file.waiting.take() else {
            return;
        };
        let mut problems = Vec::new();
        for resource in &resources {
            let owner = self
                .owners
                .get(&ObjectKey::of(resource))
                .filter(|owner| *owner != path);
            problems.extend(owner.map(|owner| Problem {
                file: path.to_owned(),
                line: resource.origin.line,
                path: "metadata.name".into(),
                text: match owner.as_str() {
                    APPLIED => format!(
                        "{} {} was applied; weft delete removes it there",
                        resource.kind(),
                        resource.meta
                    ),
                    _ => format!("{} {} is in {owner} already", resource.kind(), resource.meta),
                },
            }));
        }
        if !problems.is_empty() {
            file.problems = problems;
            file.waiting = Some((resources, bytes));
            return;
        }
        file.problems.clear();
        let old = std::mem::replace(&mut file.in_force, resources.clone());
        let keys: BTreeSet<ObjectKey> = resources.iter().map(|r| ObjectKey::of(r)).collect();
        let gone: Vec<_> = old
            .into_iter()
            .filter(|r| !keys.contains(&ObjectKey::of(r)))
            .collect();
        changes.extend(self.disown(&gone));
        for resource in resources {
            let key = ObjectKey::of(&resource);
            self.owners.insert(key.clone(), path.to_owned());
            changes.push((key, Some(resource)));
        }
        // Restored content has no bytes: it is in the store already.
        if !bytes.is_empty() {
            writes.push(Write::GoodFile {
                path: path.to_owned(),
                content: bytes,
            });
        }
    }

    /// Everything in force, then each file with something wrong in it.
    pub(crate) fn statuses(&self, kind: &str, namespace: &str) -> Vec<pb::ResourceStatus> {
        let of_files = self.files.values().flat_map(|file| &file.in_force);
        let meant = |r: &&Arc<Resource>| {
            (kind.is_empty() || r.kind().name() == kind)
                && (namespace.is_empty() || r.meta.namespace == namespace)
        };
        let all = of_files.chain(self.applied.objects()).filter(meant);
        let statuses = all.map(|resource| pb::ResourceStatus {
            api_version: resource.kind().api_version().to_owned(),
            kind: resource.kind().name().to_owned(),
            namespace: resource.meta.namespace.clone(),
            name: resource.meta.name.clone(),
            origin: resource.origin.to_string(),
            accepted: true,
            ..Default::default()
        });
        let mut statuses: Vec<_> = statuses.collect();
        // What a bad file is about is not known, so it is listed whatever was asked for.
        statuses.extend(self.rejected_statuses());
        statuses
    }

    /// Each file with something wrong in it.
    pub(crate) fn rejected_statuses(&self) -> impl Iterator<Item = pb::ResourceStatus> {
        self.files.iter().filter_map(|(path, file)| {
            let first = file.problems.first()?;
            let mut status = pb::ResourceStatus {
                kind: "File".to_owned(),
                name: path.clone(),
                origin: format!("{path}:{}", first.line),
                ..Default::default()
            };
            if self.of_cluster {
                status.origin.clone_from(path);
                // A kind that can not be read has no name.
                (status.kind, status.name) = (path.clone(), String::new());
                if let Some(key) = cluster::key_of(path) {
                    status.api_version = key.kind.api_version().to_owned();
                    status.kind = key.kind.name().to_owned();
                    (status.namespace, status.name) = (key.namespace, key.name);
                }
            }
            Some(pb::ResourceStatus {
                errors: file.problems.iter().map(ToString::to_string).collect(),
                ..status
            })
        })
    }

    /// Files that are not in force as they are, a bounded part of them with their first errors.
    pub(crate) fn rejected(&self) -> pb::RejectedResponse {
        const FILES: usize = 50;
        const ERRORS: usize = 5;
        let bad = || self.files.iter().filter(|(_, f)| !f.problems.is_empty());
        let files = bad().take(FILES).map(|(path, file)| pb::RejectedFile {
            path: path.clone(),
            earlier_in_force: !file.in_force.is_empty(),
            errors: file
                .problems
                .iter()
                .take(ERRORS)
                .map(ToString::to_string)
                .collect(),
        });
        pb::RejectedResponse {
            files: files.collect(),
            total: u32::try_from(bad().count()).unwrap_or(u32::MAX),
        }
    }

    /// The problems of the files at `paths`, for the log.
    pub(crate) fn problems_of<'a>(
        &'a self,
        paths: &'a BTreeSet<String>,
    ) -> impl Iterator<Item = &'a Problem> {
        paths
            .iter()
            .filter_map(|path| self.files.get(path))
            .flat_map(|file| &file.problems)
    }

    pub(crate) fn bad_files(&self) -> usize {
        self.files.values().filter(|f| !f.problems.is_empty()).count()
    }
}

pub(crate) fn share(resources: Vec<Resource>) -> Vec<Arc<Resource>> {
    resources.into_iter().map(Arc::new).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
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

    fn names(changes: &[Change]) -> Vec<(String, bool)> {
        changes
            .iter()
            .map(|(key, resource)| (key.name.clone(), resource.is_some()))
            .collect()
    }

    #[test]
    fn a_bad_file_leaves_in_force_what_it_said_last() {
        let mut files = Files::default();
        let good = service("a", 1) + "---\n" + &service("b", 1);
        let (changes, writes) = files.apply(vec![reading("1.yaml", &good), reading("2.yaml", "kind: x\n")]);
        assert_eq!(names(&changes), [("a".into(), true), ("b".into(), true)]);
        assert_eq!((writes.len(), files.bad_files()), (1, 1));
        // One mistake, and nothing of the file changes, not even the object without it.
        let half = service("a", 2) + "---\n" + &service("B", 2);
        let (changes, writes) = files.apply(vec![reading("1.yaml", &half)]);
        assert!(changes.is_empty() && writes.is_empty());
        assert_eq!(files.statuses("", "").iter().filter(|s| s.accepted).count(), 2);
        // Made good again, with one object less.
        let (changes, _) = files.apply(vec![reading("1.yaml", &service("a", 2))]);
        assert_eq!(names(&changes), [("b".into(), false), ("a".into(), true)]);
        let (changes, _) = files.apply(vec![Reading {
            path: "1.yaml".into(),
            content: None,
        }]);
        assert_eq!(names(&changes), [("a".into(), false)]);
    }

    #[test]
    fn an_object_belongs_to_the_file_that_had_it_first() {
        let mut files = Files::default();
        files.apply(vec![reading("2.yaml", &service("a", 1))]);
        let (changes, _) = files.apply(vec![reading(
            "1.yaml",
            &(service("a", 2) + "---\n" + &service("c", 2)),
        )]);
        assert!(changes.is_empty());
        let problem = files.statuses("", "").pop().unwrap().errors.pop().unwrap();
        assert_eq!(
            problem,
            "1.yaml:1: metadata.name: Service default/a is in 2.yaml already"
        );
        // The first one lets go, and the other one takes its place.
        let (changes, _) = files.apply(vec![reading("2.yaml", &service("b", 1))]);
        let now = |name: &str| {
            changes
                .iter()
                .rev()
                .find(|(k, _)| k.name == name)
                .map(|(_, r)| r.is_some())
        };
        assert_eq!(
            (now("a"), now("b"), now("c")),
            (Some(true), Some(true), Some(true))
        );
        assert_eq!(files.bad_files(), 0);
    }

    #[test]
    fn what_a_file_said_before_a_restart_holds_until_it_is_good_again() {
        let mut files = Files::default();
        assert_eq!(files.restore("1.yaml", service("a", 1).as_bytes()).len(), 1);
        let (changes, _) = files.apply(vec![reading("1.yaml", "kind: [")]);
        assert!(changes.is_empty());
        assert_eq!(files.statuses("", "").len(), 2);
    }
}
