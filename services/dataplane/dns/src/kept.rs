//! What is known of names, on the disk: a line for each address, added before anybody is told of it, so that it
//! is there however the process ends. Written anew when most of its lines say nothing any more.

use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// More of a file is not read.
const MAX_BYTES: u64 = 64 << 20;
/// Lines that a file may have beside twice as many as there are addresses.
const SLACK: usize = 4_096;

/// One address of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    /// Until when it is known.
    #[serde(with = "seconds")]
    pub(crate) until: SystemTime,
}

mod seconds {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        to.serialize_u64(since.as_secs())
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let seconds = u64::deserialize(from)?;
        UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .ok_or_else(|| serde::de::Error::custom("no time"))
    }
}

/// Reads a file; none is an empty one. A line that can not be read, as the last one after a crash, is left out.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Line>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file.take(MAX_BYTES)).split(b'\n') {
        lines.extend(serde_json::from_slice::<Line>(&line?).ok());
    }
    Ok(lines)
}

/// An open file that lines are added to.
#[derive(Debug)]
pub(crate) struct File {
    path: PathBuf,
    file: fs::File,
    lines: usize,
    /// The last write failed and was told.
    failed: bool,
}

fn encode(lines: &[Line]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        if serde_json::to_writer(&mut bytes, line).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes
}

impl File {
    /// Writes it anew: it is the old one or the new one at any moment.
    pub(crate) fn write(path: &Path, lines: &[Line]) -> io::Result<Self> {
        let beside = path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&encode(lines))?;
        fs::rename(&beside, path)?;
        let file = fs::OpenOptions::new().append(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            lines: lines.len(),
            failed: false,
        })
    }

    pub(crate) fn append(&mut self, lines: &[Line]) {
        if lines.is_empty() {
            return;
        }
        let written = self.file.write_all(&encode(lines));
        self.lines += lines.len();
        self.tell(written);
    }

    /// Whether most of it says nothing any more.
    pub(crate) fn is_long(&self, addresses: usize) -> bool {
        self.lines > addresses * 2 + SLACK
    }

    pub(crate) fn replace(&mut self, lines: &[Line]) {
        match Self::write(&self.path, lines) {
            Ok(new) => *self = new,
            Err(error) => self.tell(Err(error)),
        }
    }

    fn tell(&mut self, written: io::Result<()>) {
        if let Err(error) = &written
            && !self.failed
        {
            tracing::error!(
                path = %self.path.display(), %error,
                "addresses of names are not kept: after a restart connections to them are cut until they are asked for again"
            );
        }
        self.failed = written.is_err();
    }
}
