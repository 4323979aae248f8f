//! Roots and issuers over time: the first start, the operator's own, and each step of a rotation,
//! written to the database as a whole and then taken into use.

use crate::{
    authority::{Authority, Made, Maker},
    core::Core,
    db::{Cross, NewIssuer, NewRoot, Op, State, StoredIssuer, StoredRoot, StoredTrust},
    error::StartError,
    jwt::{self, Signer},
    kek::Kek,
    revocation::Revocations,
    rotation::{self, Phase, Step},
    supplied::Supplied,
};
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use weft_model::TrustDomain;
use weft_tls::{Bundle, root_sha256};
use zeroize::Zeroizing;

/// Labels that sealed keys are bound to.
pub const ROOT: &str = "root";
pub const ISSUER: &str = "issuer";

/// What is stored, with the issuer's key open.
#[derive(Debug)]
pub struct Live {
    /// Signs.
    pub authority: Authority,
    /// As it was read.
    pub trust: StoredTrust,
    /// The root in use.
    pub root: CertificateDer<'static>,
    /// By what each meets.
    pub revocations: Revocations,
    /// Signs JWT-SVIDs; `None` for a moment in a database of an older version.
    pub jwt: Option<Signer>,
    /// The public halves of all its keys, as a JWK set.
    pub jwks: Vec<u8>,
}

impl Live {
    /// Opens what was stored.
    pub fn open(trust: StoredTrust, kek: &Kek, now: u64) -> Result<Self, StartError> {
        let root = trust.active_root().ok_or(StartError::Incomplete("active root"))?;
        let root = root.cert.clone();
        let issuer = trust.active_issuer();
        let issuer = issuer.ok_or(StartError::Incomplete("active issuer"))?;
        let sealed = issuer.sealed_key.as_ref();
        let key = kek.open_sealed(ISSUER, sealed.ok_or(StartError::Incomplete("issuer's key"))?)?;
        // Without its root, the other path leads nowhere.
        let cross = issuer.cross.as_ref();
        let cross = cross.filter(|c| trust.roots.iter().any(|r| r.id == c.root_id));
        let authority = Authority::new(issuer.id, &issuer.cert, cross.map(|c| &c.cert), &key, now)?;
        let by_target = trust.revocations.iter().map(|r| (r.target.text(), r.clone()));
        let jwt = trust.active_jwt_key();
        let jwt = jwt.map(|key| Signer::open(key, kek)).transpose()?;
        let jwks = jwt::set(&trust.jwt_keys)?;
        Ok(Self {
            authority,
            revocations: Arc::new(by_target.collect()),
            trust,
            root,
            jwt,
            jwks,
        })
    }

    /// What verifiers are given.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Bundle {
        Bundle {
            trust_domain: trust_domain.clone(),
            version: self.trust.bundle_version,
            roots: self.trust.roots.iter().map(|r| r.cert.clone()).collect(),
            jwks: self.jwks.clone(),
        }
    }

    /// Roots that join tokens may pin, the one in use last.
    pub fn pinned_roots(&self) -> Vec<CertificateDer<'static>> {
        let of = |state| self.trust.roots.iter().filter(move |r| r.state == state);
        of(State::Retired)
            .chain(of(State::Active))
            .map(|r| r.cert.clone())
            .collect()
    }

    /// The root in use, as the database knows it.
    pub fn root_id(&self) -> i64 {
        self.trust.active_root().map_or(0, |r| r.id)
    }
}

fn new_root(made: &Made, state: State, kek: &Kek) -> Result<Op, StartError> {
    Ok(Op::AddRoot(NewRoot {
        state,
        cert: made.cert.clone(),
        sealed_key: Some(kek.seal(ROOT, &made.key)?),
        wanted_until: 0,
    }))
}

fn new_issuer(
    made: &Made,
    state: State,
    root_id: Option<i64>,
    cross: Option<Cross>,
    kek: &Kek,
) -> Result<Op, StartError> {
    Ok(Op::AddIssuer(NewIssuer {
        state,
        root_id,
        cert: made.cert.clone(),
        cross,
        sealed_key: kek.seal(ISSUER, &made.key)?,
    }))
}

/// The operator's root in a state, without its key if that stays with the operator.
fn supplied_root(supplied: &Supplied, state: State, kek: &Kek) -> Result<Op, StartError> {
    let key = supplied.root_key.as_ref();
    Ok(Op::AddRoot(NewRoot {
        state,
        cert: supplied.root.clone(),
        sealed_key: key.map(|key| kek.seal(ROOT, key)).transpose()?,
        wanted_until: 0,
    }))
}

/// What a first start writes.
pub fn first(maker: &Maker, supplied: Option<&Supplied>, kek: &Kek, now: u64) -> Result<Vec<Op>, StartError> {
    let Some(supplied) = supplied else {
        let root = maker.root(now)?;
        let issuer = maker.issuer(&root.cert, &root.key, now)?;
        return Ok(vec![
            new_root(&root, State::Active, kek)?,
            new_issuer(&issuer, State::Active, None, None, kek)?,
            jwt::new_key(State::Active, kek)?,
        ]);
    };
    let mut ops = Vec::new();
    for other in &supplied.others {
        ops.push(Op::AddRoot(NewRoot {
            state: State::Retired,
            cert: other.clone(),
            sealed_key: None,
            // The operator wants it trusted; nothing here knows what it signed.
            wanted_until: rotation::life(other)?.1,
        }));
    }
    ops.push(supplied_root(supplied, State::Active, kek)?);
    ops.push(new_issuer(&supplied.issuer, State::Active, None, None, kek)?);
    ops.push(jwt::new_key(State::Active, kek)?);
    Ok(ops)
}

/// What has to change for the operator's authority to be the one in use; nothing when it is.
pub fn adopt(supplied: &Supplied, trust: &StoredTrust, kek: &Kek) -> Result<Vec<Op>, StartError> {
    if trust.issuers.iter().any(|i| i.cert == supplied.issuer.cert) {
        return Ok(Vec::new());
    }
    let known = trust.roots.iter().find(|r| r.cert == supplied.root);
    match known {
        Some(root) if root.state == State::Active => {
            let mut ops = retire_issuers(trust);
            ops.push(new_issuer(
                &supplied.issuer,
                State::Active,
                Some(root.id),
                None,
                kek,
            )?);
            Ok(ops)
        }
        Some(root) => Ok(vec![
            Op::SetState(root.id, State::Prepared),
            new_issuer(&supplied.issuer, State::Prepared, Some(root.id), None, kek)?,
            Op::NextBundle,
        ]),
        None => Ok(vec![
            supplied_root(supplied, State::Prepared, kek)?,
            new_issuer(&supplied.issuer, State::Prepared, None, None, kek)?,
            Op::NextBundle,
        ]),
    }
}

fn retire_issuers(trust: &StoredTrust) -> Vec<Op> {
    let active = trust.issuers.iter().filter(|i| i.state == State::Active);
    active
        .flat_map(|i| [Op::SetState(i.id, State::Retired), Op::EraseKey(i.id)])
        .collect()
}

/// What a step writes.
pub fn perform(
    step: Step,
    maker: &Maker,
    trust: &StoredTrust,
    kek: &Kek,
    now: u64,
) -> Result<Vec<Op>, StartError> {
    match step {
        Step::Prepare => Ok(vec![
            new_root(&maker.root(now)?, State::Prepared, kek)?,
            Op::NextBundle,
        ]),
        Step::Activate(id) => activate(id, maker, trust, kek, now),
        Step::Reissue => {
            let root = trust.active_root().ok_or(StartError::Incomplete("active root"))?;
            let older = trust.roots.iter().rfind(|r| r.state == State::Retired);
            let mut ops = retire_issuers(trust);
            ops.push(issuer_under(root, older, maker, kek, now)?);
            Ok(ops)
        }
        Step::PrepareJwtKey => Ok(vec![jwt::new_key(State::Prepared, kek)?, Op::NextBundle]),
        Step::ActivateJwtKey(id) => {
            let active = trust.jwt_keys.iter().filter(|k| k.state == State::Active);
            let retire = active.flat_map(|k| [Op::SetState(k.id, State::Retired), Op::EraseKey(k.id)]);
            Ok(retire.chain([Op::SetState(id, State::Active)]).collect())
        }
        Step::Drop(id, published) => {
            let mut ops = vec![Op::Drop(id)];
            ops.extend(published.then_some(Op::NextBundle));
            Ok(ops)
        }
    }
}

fn activate(id: i64, maker: &Maker, trust: &StoredTrust, kek: &Kek, now: u64) -> Result<Vec<Op>, StartError> {
    let new = trust.roots.iter().find(|r| r.id == id);
    let new = new.ok_or(StartError::Incomplete("prepared root"))?;
    let old = trust.active_root();
    let mut ops = retire_issuers(trust);
    ops.extend(old.map(|r| Op::SetState(r.id, State::Retired)));
    ops.push(Op::SetState(id, State::Active));
    let brought = |i: &&StoredIssuer| i.root_id == id && i.state == State::Prepared;
    match trust.issuers.iter().find(brought) {
        Some(issuer) => ops.push(Op::SetState(issuer.id, State::Active)),
        None => ops.push(issuer_under(new, old, maker, kek, now)?),
    }
    Ok(ops)
}

/// A new issuer under `root`, and under the root before it where its key is held.
fn issuer_under(
    root: &StoredRoot,
    older: Option<&StoredRoot>,
    maker: &Maker,
    kek: &Kek,
    now: u64,
) -> Result<Op, StartError> {
    let open = |root: &StoredRoot| -> Result<Option<Zeroizing<Vec<u8>>>, StartError> {
        let sealed = root.sealed_key.as_ref();
        Ok(sealed.map(|s| kek.open_sealed(ROOT, s)).transpose()?)
    };
    let key = open(root)?.ok_or(StartError::Incomplete("root's key"))?;
    let made = maker.issuer(&root.cert, &key, now)?;
    let mut cross = None;
    if let Some(older) = older.filter(|r| rotation::is_valid(&r.cert, now))
        && let Some(key) = open(older)?
    {
        cross = Some(Cross {
            root_id: older.id,
            cert: maker.cross(&made, &older.cert, &key, now)?,
        });
    }
    new_issuer(&made, State::Active, Some(root.id), cross, kek)
}

impl Core {
    /// Goes on with whatever is next, as far as it goes now. True when another issuer signs since.
    pub async fn advance(&self) -> Result<bool, StartError> {
        let before = self.live.load().authority.issuer_id();
        self.refresh().await?;
        // Each step leads to the next; more than this at once is a mistake.
        const STEPS: usize = 16;
        for _ in 0..STEPS {
            let live = self.live.load_full();
            let now = self.now();
            let acked = self.min_acked().await?;
            let Some(step) = rotation::next(&live.trust, acked, now, !self.supplied) else {
                break;
            };
            let ops = perform(step, &self.maker, &live.trust, &self.kek, now)?;
            if self.change(&live.trust, &ops).await? {
                tracing::info!(?step, "authority changed");
            }
        }
        let live = self.live.load_full();
        let over = live.trust.revocations.iter().filter(|r| r.until < self.now());
        let ops: Vec<Op> = over.map(|r| Op::Forget(r.target.clone())).collect();
        if !ops.is_empty() {
            self.change(&live.trust, &ops).await?;
        }
        Ok(self.live.load().authority.issuer_id() != before)
    }

    /// Begins to rotate the root; it goes on by [`Core::advance`].
    pub async fn prepare_root(&self) -> Result<Phase, StartError> {
        self.refresh().await?;
        let live = self.live.load_full();
        if Phase::of(&live.trust) != Phase::Distributing {
            let ops = perform(Step::Prepare, &self.maker, &live.trust, &self.kek, self.now())?;
            self.change(&live.trust, &ops).await?;
        }
        Ok(Phase::of(&self.live.load().trust))
    }

    /// Puts a new issuer in place.
    pub async fn reissue(&self) -> Result<(), StartError> {
        self.refresh().await?;
        let live = self.live.load_full();
        let ops = perform(Step::Reissue, &self.maker, &live.trust, &self.kek, self.now())?;
        self.change(&live.trust, &ops).await?;
        Ok(())
    }

    /// Has everything renewed that was given out until now.
    pub async fn renew_all(&self) -> Result<(), StartError> {
        let live = self.live.load_full();
        self.change(&live.trust, &[Op::RenewBefore(self.now())]).await?;
        Ok(())
    }

    /// Takes over what the operator's files say now.
    pub async fn adopt_supplied(&self, supplied: &Supplied) -> Result<bool, StartError> {
        let live = self.live.load_full();
        let ops = adopt(supplied, &live.trust, &self.kek)?;
        if ops.is_empty() {
            return Ok(false);
        }
        tracing::info!("another authority was supplied");
        self.change(&live.trust, &ops).await
    }

    /// [`Core::change`] of what is there now.
    pub(crate) async fn change_now(&self, ops: &[Op]) -> Result<bool, StartError> {
        self.refresh().await?;
        let live = self.live.load_full();
        self.change(&live.trust, ops).await
    }

    /// Writes a change of what was read, and takes it into use. False when somebody else changed
    /// something before: that is in use then.
    async fn change(&self, seen: &StoredTrust, ops: &[Op]) -> Result<bool, StartError> {
        let done = self.db.change_trust(seen.generation, ops, self.now()).await?;
        self.refresh().await?;
        Ok(done)
    }

    /// Takes over what the database says, if it is newer than what is in use.
    pub async fn refresh(&self) -> Result<(), StartError> {
        let seen = self.live.load().trust.generation;
        if self.db.generation().await? == seen {
            return Ok(());
        }
        let trust = self.db.trust().await?;
        let live = Live::open(
            trust.ok_or(StartError::Incomplete("authority"))?,
            &self.kek,
            self.now(),
        )?;
        self.take(live);
        Ok(())
    }

    /// SHA-256 of the root in use: what join tokens pin.
    pub fn root_sha256(&self) -> [u8; 32] {
        root_sha256(&self.live.load().root)
    }
}
