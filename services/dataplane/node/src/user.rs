//! Whose rights the agent gets.

use crate::NodeError;
use nix::unistd::{Gid, Group, Uid, User};

/// The user looked for when none is configured.
const DEFAULT_USER: &str = "weft";
/// Taken when that user does not exist: a number that Debian and others reserve and give to no
/// account. Not `nobody`, whom other programs run as and who could then trace the agent.
const FALLBACK_ID: u32 = 65033;

/// An unprivileged user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentUser {
    /// Never 0.
    pub uid: u32,
    /// Never 0.
    pub gid: u32,
}

impl AgentUser {
    /// By what is configured: a name, `uid` or `uid:gid`; otherwise the default.
    pub fn resolve(configured: Option<&str>) -> Result<Self, NodeError> {
        let Some(text) = configured else {
            return Ok(match User::from_name(DEFAULT_USER) {
                Ok(Some(user)) if !user.uid.is_root() => Self {
                    uid: user.uid.as_raw(),
                    gid: user.gid.as_raw(),
                },
                _ => Self {
                    uid: FALLBACK_ID,
                    gid: FALLBACK_ID,
                },
            });
        };
        let failed = |detail: &str| NodeError::AgentUser {
            user: text.to_owned(),
            detail: detail.to_owned(),
        };
        let (user, group) = text
            .split_once(':')
            .map_or((text, None), |(user, group)| (user, Some(group)));
        let (uid, own_group) = match user.parse::<u32>() {
            Ok(uid) => (
                uid,
                User::from_uid(Uid::from_raw(uid))
                    .ok()
                    .flatten()
                    .map(|user| user.gid),
            ),
            Err(_) => match User::from_name(user) {
                Ok(Some(found)) => (found.uid.as_raw(), Some(found.gid)),
                _ => return Err(failed("there is no such user")),
            },
        };
        let gid = match group.map(|group| (group, group.parse::<u32>())) {
            None => own_group.unwrap_or(Gid::from_raw(uid)).as_raw(),
            Some((_, Ok(gid))) => gid,
            Some((name, Err(_))) => match Group::from_name(name) {
                Ok(Some(found)) => found.gid.as_raw(),
                _ => return Err(failed("there is no such group")),
            },
        };
        if uid == 0 || gid == 0 {
            return Err(failed("the agent must not have root's rights"));
        }
        Ok(Self { uid, gid })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        assert_eq!(
            AgentUser::resolve(Some("65100")).unwrap(),
            AgentUser {
                uid: 65100,
                gid: 65100
            }
        );
        assert_eq!(
            AgentUser::resolve(Some("65100:65101")).unwrap(),
            AgentUser {
                uid: 65100,
                gid: 65101
            }
        );
        assert_ne!(AgentUser::resolve(None).unwrap().uid, 0);
    }

    #[test]
    fn root_and_unknown_users_are_refused() {
        for (user, words) in [
            ("root", "root's rights"),
            ("0", "root's rights"),
            ("65100:0", "root's rights"),
            ("no-such-user", "no such user"),
            ("65100:no-such-group", "no such group"),
        ] {
            let error = AgentUser::resolve(Some(user)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
