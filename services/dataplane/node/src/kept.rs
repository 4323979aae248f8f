//! The pods that are placed, one file each in the folder of sockets: a weft-node that starts after
//! one that was killed places them again, so that its agent does not take what is in the kernel for
//! left over. Launchers that add them again find them.
//!
//! The folder is gone after a reboot, as the pods are.

use prost::Message as _;
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};
use weft_handoff::Placed;
use weft_proto::weft::node::v1 as proto;

const FOLDER: &str = "pods";

/// The files.
#[derive(Debug)]
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// Below the folder of sockets. Specifications may hold what is not for everybody.
    pub(crate) fn open(run_dir: &Path) -> io::Result<Self> {
        let folder = run_dir.join(FOLDER);
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(Self(folder)),
        }
    }

    fn path(&self, endpoint: u32) -> PathBuf {
        self.0.join(endpoint.to_string())
    }

    /// Remembers a pod, whole or not at all.
    pub(crate) fn keep(&self, placed: &Placed) {
        let derived = placed.derived.clone();
        let message = proto::WorkloadPlaced {
            id: placed.id.clone(),
            spec: Some(placed.spec.clone()),
            endpoint: placed.endpoint,
            derived: derived.map(|(identity, spiffe_id)| proto::WorkloadDerived {
                id: placed.id.clone(),
                identity,
                spiffe_id,
            }),
            ..proto::WorkloadPlaced::default()
        };
        let (path, beside) = (self.path(placed.endpoint), self.0.join(".new"));
        let written = fs::write(&beside, message.encode_to_vec()).and_then(|()| fs::rename(&beside, &path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "a pod would not be found again after a crash");
        }
    }

    /// Forgets a pod.
    pub(crate) fn forget(&self, endpoint: u32) {
        let _ = fs::remove_file(self.path(endpoint));
    }

    /// At the end of a node that takes everything with it.
    pub(crate) fn close(&self) {
        let _ = fs::remove_dir(&self.0);
    }

    /// What was kept; files that cannot be read are removed.
    pub(crate) fn all(&self) -> Vec<proto::WorkloadPlaced> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let read = fs::read(entry.path()).ok();
                let kept = read.and_then(|bytes| proto::WorkloadPlaced::decode(bytes.as_slice()).ok());
                let named = |kept: &proto::WorkloadPlaced| {
                    kept.spec.is_some() && entry.file_name() == *kept.endpoint.to_string()
                };
                let kept = kept.filter(named);
                if kept.is_none() {
                    let _ = fs::remove_file(entry.path());
                }
                kept
            })
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_proto::weft::dataplane::v1::WorkloadSpec;

    #[test]
    fn what_is_kept_is_found_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::open(folder.path()).unwrap();
        let placed = Placed {
            id: "n1/default/shop/1".into(),
            spec: WorkloadSpec {
                name: "shop".into(),
                ..WorkloadSpec::default()
            },
            listeners: Vec::new(),
            cgroup: None,
            cgroup_id: 0,
            endpoint: 7,
            addresses: Vec::new(),
            derived: Some((257, "spiffe://x/y".into())),
        };
        kept.keep(&placed);
        let again = Kept::open(folder.path()).unwrap().all();
        assert_eq!((again.len(), again[0].endpoint, &again[0].id), (1, 7, &placed.id));
        assert_eq!(again[0].derived.as_ref().unwrap().identity, 257);
        kept.forget(7);
        assert!(kept.all().is_empty());
    }

    proptest! {
        #[test]
        fn damaged_files_are_removed(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let folder = tempfile::tempdir().unwrap();
            let kept = Kept::open(folder.path()).unwrap();
            fs::write(kept.path(9), &bytes).unwrap();
            prop_assert_eq!(kept.all().is_empty(), !kept.path(9).exists());
        }
    }
}
