//! Flows as JSON lines in a file that is rotated, for log shippers.

use super::json::{JsonError, to_json};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use weft_proto::hubble::observer::{
    ExportEvent, GetFlowsResponse, export_event, get_flows_response::ResponseTypes,
};

/// When a file is full, and how many full ones stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes of one file. A line is never cut, so that one line may be more.
    pub max_bytes: u64,
    /// Files that were full and are kept, besides the one that is written.
    pub max_backups: usize,
}

/// Why a line could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file or its folder.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A flow that has no JSON form.
    #[error(transparent)]
    Json(#[from] JsonError),
}

/// The file that is written: `events.log`, before it `events.log.1` and so on, the oldest last.
#[derive(Debug)]
pub struct Export {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
}

impl Export {
    /// Goes on behind what the file holds. Its folder must be there; only its owner may read it.
    pub fn open(path: &Path, rotation: Rotation) -> Result<Self, ExportError> {
        let file = open(path)?;
        let size = file.metadata().map_err(|e| failed("open", path, e))?.len();
        Ok(Self {
            path: path.to_owned(),
            rotation,
            file,
            size,
        })
    }

    /// Writes one message of a stream as one line.
    pub fn write(&mut self, response: GetFlowsResponse) -> Result<(), ExportError> {
        let kind = match response.response_types {
            Some(ResponseTypes::Flow(flow)) => export_event::ResponseTypes::Flow(flow),
            Some(ResponseTypes::LostEvents(lost)) => export_event::ResponseTypes::LostEvents(lost),
            Some(ResponseTypes::NodeStatus(status)) => export_event::ResponseTypes::NodeStatus(status),
            None => return Ok(()),
        };
        let event = ExportEvent {
            response_types: Some(kind),
            node_name: response.node_name,
            time: response.time,
        };
        let mut line = to_json("observer.ExportEvent", &event)?;
        line.push('\n');
        let length = line.len() as u64;
        if self.size > 0 && self.size + length > self.rotation.max_bytes {
            self.rotate()?;
        }
        self.file
            .write_all(line.as_bytes())
            .map_err(|e| failed("write to", &self.path, e))?;
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), ExportError> {
        let backup = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let most = self.rotation.max_backups;
        // What a larger number kept before goes, too.
        for number in most.max(1).. {
            match fs::remove_file(backup(number)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(failed("remove", &backup(number), e)),
            }
        }
        for number in (1..most).rev() {
            match fs::rename(backup(number), backup(number + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("rename", &backup(number), e));
                }
                _ => {}
            }
        }
        let gone = if most == 0 {
            fs::remove_file(&self.path)
        } else {
            fs::rename(&self.path, backup(1))
        };
        gone.map_err(|e| failed("rotate", &self.path, e))?;
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, ExportError> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path);
    file.map_err(|e| failed("open", path, e))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> ExportError {
    ExportError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use weft_proto::hubble::flow as pb;

    fn flow(number: u32) -> GetFlowsResponse {
        GetFlowsResponse {
            node_name: "n1".into(),
            response_types: Some(ResponseTypes::Flow(pb::Flow {
                proxy_port: number,
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn numbers(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines()
            .map(|l| read(l)["flow"]["proxy_port"].as_u64().unwrap())
            .collect()
    }

    #[test]
    fn full_files_are_kept_up_to_their_number_and_no_line_is_lost_between() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.log");
        let rotation = Rotation {
            max_bytes: 140,
            max_backups: 2,
        };
        let mut export = Export::open(&path, rotation).unwrap();
        // Three lines of 45 bytes fit.
        (100..112).for_each(|n| export.write(flow(n)).unwrap());
        let backup = |n: u32| folder.path().join(format!("events.log.{n}"));
        assert_eq!(numbers(&path), [109, 110, 111]);
        assert_eq!(numbers(&backup(1)), [106, 107, 108]);
        assert_eq!(numbers(&backup(2)), [103, 104, 105]);
        assert!(!backup(3).exists());
        assert!(fs::metadata(backup(1)).unwrap().len() <= 140);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        // An agent that starts anew goes on in the same file, with less to keep.
        drop(export);
        let less = Rotation {
            max_backups: 1,
            ..rotation
        };
        let mut export = Export::open(&path, less).unwrap();
        export.write(flow(112)).unwrap();
        assert_eq!(
            (numbers(&path), numbers(&backup(1))),
            (vec![112], vec![109, 110, 111])
        );
        assert!(!backup(2).exists());

        let none = Rotation {
            max_backups: 0,
            ..rotation
        };
        let mut export = Export::open(&path, none).unwrap();
        (113..117).for_each(|n| export.write(flow(n)).unwrap());
        assert_eq!(numbers(&path), [115, 116]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let rotation = Rotation {
            max_bytes: 1,
            max_backups: 1,
        };
        let error = Export::open(Path::new("/nowhere/events.log"), rotation).unwrap_err();
        assert!(error.to_string().contains("/nowhere/events.log"), "{error}");
    }
}
