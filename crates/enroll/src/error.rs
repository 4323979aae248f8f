//! Why a process is no member, with what to do about it.

use crate::TokenError;
use std::{io, path::PathBuf};
use weft_model::{Principal, SpiffeError, SpiffeId};
use weft_rpc::RpcError;
use weft_tls::TlsError;

/// Why a process is no member. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// First start, and no token.
    #[error(
        "{id} has no certificate in {} yet and no join token was given; make one with `{}` and pass it by \
         --join-token-file or WEFT_JOIN_TOKEN",
        folder.display(), command(id)
    )]
    NoToken {
        /// Who wants to join.
        id: SpiffeId,
        /// Where the certificate would be.
        folder: PathBuf,
    },
    /// The certificate's time is over, and no token.
    #[error(
        "the certificate of {id} in {} expired {seconds_ago} s ago and can not be renewed any more; make a new \
         join token with `{}` and pass it by --join-token-file or WEFT_JOIN_TOKEN (if the machine's clock is \
         right)",
        folder.display(), command(id)
    )]
    Expired {
        /// Whose certificate.
        id: SpiffeId,
        /// Where it is.
        folder: PathBuf,
        /// Since when.
        seconds_ago: u64,
    },
    /// The certificate begins in the future.
    #[error(
        "the certificate of {id} in {} is valid only in {seconds} s: set the machine's clock",
        folder.display()
    )]
    ClockBehind {
        /// Whose certificate.
        id: SpiffeId,
        /// Where it is.
        folder: PathBuf,
        /// How far the clock is behind.
        seconds: u64,
    },
    /// The folder belongs to somebody else.
    #[error(
        "{} holds the certificate of {found}, this process is to be {wanted}; give it another folder, or remove \
         that one to join anew",
        folder.display()
    )]
    OtherId {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        found: Box<SpiffeId>,
        /// Who wanted it.
        wanted: Box<SpiffeId>,
    },
    /// The token is damaged.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A file with something else than a token in it.
    #[error("{}: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its text.
        source: TokenError,
    },
    /// A file that can not be read or written.
    #[error("{} can not be used: {source}{}", path.display(), remedy(.source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file with something else in it.
    #[error("{} is damaged: {reason}; remove the folder and join anew with a token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The roots that the identity service is to be believed by.
    #[error("the trust anchors in {} can not be used: {reason}; they are the mesh's roots as PEM", path.display())]
    TrustAnchors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nothing says whom to show a token of Kubernetes.
    #[error(
        "joining with a token of Kubernetes needs the mesh's roots, to know the identity service by: give them by \
         --trust-anchors-file or WEFT_TRUST_ANCHORS_FILE"
    )]
    NoTrustAnchors,
    /// Another process is starting with the folder, and does not get on.
    #[error("{} is held by another process that is joining; stop it, or give this one another folder", .0.display())]
    InUse(PathBuf),
    /// The identity service said no.
    #[error("the identity service at {address} refused to let {id} join: {reason}")]
    Refused {
        /// Where it is.
        address: String,
        /// Who wanted to join.
        id: Box<SpiffeId>,
        /// What it said.
        reason: String,
    },
    /// The identity service did not answer in time.
    #[error("the identity service at {address} can not be reached: {reason}")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The server is not the one the token was made by.
    #[error("the server at {address} is not the identity service that made the join token: {reason}")]
    WrongServer {
        /// Where it is.
        address: String,
        /// What was wrong.
        reason: String,
    },
    /// The token is for another name. It is used up.
    #[error(
        "the join token was made for {given}, this process is to be {wanted}; the token is used up, make one \
         with `{}`",
        command(wanted)
    )]
    TokenForOther {
        /// Whom the token names.
        given: Box<SpiffeId>,
        /// Who used it.
        wanted: Box<SpiffeId>,
    },
    /// The server's answer makes no sense.
    #[error("the identity service at {address} answered with something unusable: {reason}")]
    Answer {
        /// Where it is.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The name is none that joins with a token.
    #[error("{0} is no service and no node: only these join with a token")]
    NotAMember(SpiffeId),
    /// Names.
    #[error(transparent)]
    SpiffeId(#[from] SpiffeError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Addresses and channels.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space on its file system",
        io::ErrorKind::PermissionDenied => "; let the user of this process use it, or name another place",
        io::ErrorKind::NotFound => "; check its name",
        _ => "",
    }
}

/// The command that makes a token for `id`.
fn command(id: &SpiffeId) -> String {
    match id.principal() {
        Principal::Service(name) => format!("weft identity join-token create --kind service --name {name}"),
        Principal::Node(name) => {
            format!(
                "weft identity join-token create --kind node --name {name} --may-host '<namespace>/<app-id>'"
            )
        }
        _ => "weft identity join-token create".to_owned(),
    }
}
