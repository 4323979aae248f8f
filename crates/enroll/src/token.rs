//! Join tokens: `weft1.<root's SHA-256>.<id>.<secret>`, the middle parts in base64url and hex.
//!
//! The first part makes the newcomer sure of the server, the last makes the server sure of the
//! newcomer. The id finds the token's record and is no secret.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{fmt, str::FromStr};
use zeroize::{Zeroize, Zeroizing};

const VERSION: &str = "weft1";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
/// No token is longer; what is longer is not looked at.
const MAX_TEXT: usize = 256;

/// Why a text is no join token. Never holds any of the text: it may be a mistyped secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the join token can not be read: {0}; copy all of what `weft identity join-token create` printed")]
pub struct TokenError(&'static str);

/// A join token. Its secret is wiped when it is dropped and never shown by `Debug`.
#[derive(Clone)]
pub struct JoinToken {
    root_sha256: [u8; 32],
    id: String,
    secret: [u8; SECRET_BYTES],
}

impl JoinToken {
    /// Puts a token together; `id` and `secret` must be random.
    pub fn new(root_sha256: [u8; 32], id: [u8; ID_BYTES], secret: [u8; SECRET_BYTES]) -> Self {
        Self {
            root_sha256,
            id: hex::encode(id),
            secret,
        }
    }

    /// SHA-256 of the root certificate that the server must show.
    pub fn root_sha256(&self) -> [u8; 32] {
        self.root_sha256
    }

    /// The record's id: may be logged.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What proves possession of the token.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// The whole token. Handle as a password.
    pub fn reveal(&self) -> Zeroizing<String> {
        let root = URL_SAFE_NO_PAD.encode(self.root_sha256);
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret));
        Zeroizing::new(format!("{VERSION}.{root}.{}.{}", self.id, secret.as_str()))
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(TokenError("it is too long"));
        }
        let mut parts = text.split('.');
        let (version, root, id, secret, rest) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        );
        if version != Some(VERSION) {
            return Err(TokenError("it does not start with \"weft1.\""));
        }
        let (Some(root), Some(id), Some(secret), None) = (root, id, secret, rest) else {
            return Err(TokenError("it does not have four parts"));
        };
        let mut id_bytes = [0; ID_BYTES];
        hex::decode_to_slice(id, &mut id_bytes).map_err(|_| TokenError("its third part is damaged"))?;
        Ok(Self {
            root_sha256: decode(root).ok_or(TokenError("its second part is damaged"))?,
            id: hex::encode(id_bytes),
            secret: decode(secret).ok_or(TokenError("its last part is damaged"))?,
        })
    }
}

fn decode(text: &str) -> Option<[u8; 32]> {
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
    bytes.as_slice().try_into().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn debug_shows_no_secret() {
        let token = JoinToken::new([1; 32], [2; 8], [3; 32]);
        let shown = format!("{token:?}");
        assert!(shown.contains("0202020202020202"), "{shown}");
        assert!(
            !shown.contains(token.reveal().rsplit('.').next().unwrap()),
            "{shown}"
        );
        assert!(!shown.contains("3, 3"), "{shown}");
    }

    #[test]
    fn a_damaged_token_is_named_but_not_shown() {
        let good = JoinToken::new([1; 32], [2; 8], [3; 32]).reveal();
        assert!(good.parse::<JoinToken>().is_ok());
        assert!(format!(" {}\n", good.as_str()).parse::<JoinToken>().is_ok());
        for bad in [
            "",
            "weft1",
            "weft2.a.b.c",
            &good[..good.len() - 1],
            &format!("{}.x", good.as_str()),
        ] {
            let error = bad.parse::<JoinToken>().unwrap_err().to_string();
            assert!(error.contains("join-token create"), "{error}");
        }
    }

    fn corpus() -> weft_fuzz::Corpus {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/join-token");
        weft_fuzz::Corpus::read(&folder).words(["weft1.", ".", " ", "="])
    }

    /// There is one way to write a token, but for the space around it and the case of its id.
    fn holds(parse: impl Fn(&str) -> Option<JoinToken>, bytes: &[u8]) {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        if let Some(token) = parse(text) {
            let written = token.reveal();
            assert!(written.len() <= MAX_TEXT && text.trim().eq_ignore_ascii_case(&written));
        }
    }

    #[test]
    fn fuzz_join_token() {
        weft_fuzz::target!(corpus(), |text: &[u8]| holds(|t| t.parse().ok(), text));
    }

    #[test]
    fn the_target_notices_when_a_tail_is_passed_over() {
        let careless = |text: &str| {
            let parts: Vec<&str> = text.trim().split('.').take(4).collect();
            parts.join(".").parse().ok()
        };
        assert!(weft_fuzz::finds!(20_000, corpus(), |text: &[u8]| holds(
            careless, text
        )));
    }

    proptest! {
        #[test]
        fn what_was_made_is_read_back(root: [u8; 32], id: [u8; 8], secret: [u8; 32]) {
            let token = JoinToken::new(root, id, secret);
            let read: JoinToken = token.reveal().parse().unwrap();
            prop_assert_eq!(read.root_sha256(), root);
            prop_assert_eq!(read.id(), token.id());
            prop_assert_eq!(read.secret(), &secret[..]);
        }

        #[test]
        fn any_text_is_parsed_without_panic(s in "\\PC{0,300}", tail in "[a-zA-Z0-9._-]{0,150}") {
            let _ = s.parse::<JoinToken>();
            let _ = format!("weft1.{tail}").parse::<JoinToken>();
        }
    }
}
