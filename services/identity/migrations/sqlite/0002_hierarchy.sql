-- The life of roots and issuers: prepared (roots are in the bundle, nothing is signed with them),
-- active (one root, one issuer), retired (its key is gone or signs nothing; dropped when nothing it
-- signed lives).
ALTER TABLE authorities ADD COLUMN state TEXT NOT NULL DEFAULT 'active';
-- The root of an issuer; 0 for roots.
ALTER TABLE authorities ADD COLUMN root_id INTEGER NOT NULL DEFAULT 0;
-- The issuer's key under an older root that some verifiers may still hold alone; empty for none.
ALTER TABLE authorities ADD COLUMN cross_der BLOB NOT NULL DEFAULT x'';
ALTER TABLE authorities ADD COLUMN cross_root_id INTEGER NOT NULL DEFAULT 0;
-- Nothing that depends on it lives longer: certificates on an issuer, join tokens on a root.
ALTER TABLE authorities ADD COLUMN signed_until INTEGER NOT NULL DEFAULT 0;

UPDATE authorities SET state = 'retired', sealed_key = x''
WHERE kind = 'issuer' AND id < (SELECT max(id) FROM authorities WHERE kind = 'issuer');
UPDATE authorities SET root_id = (SELECT max(id) FROM authorities WHERE kind = 'root')
WHERE kind = 'issuer';
-- What was signed before was not counted: a certificate lives for 30 days at most.
UPDATE authorities SET signed_until = CAST(strftime('%s', 'now') AS INTEGER) + 2592000;

-- Rises with each change that replicas have to read.
ALTER TABLE trust ADD COLUMN generation INTEGER NOT NULL DEFAULT 1;
-- When the newest certificate of the service itself begins.
ALTER TABLE trust ADD COLUMN newest_own INTEGER NOT NULL DEFAULT 0;
-- Certificates that begin before are to be renewed now.
ALTER TABLE trust ADD COLUMN renew_before INTEGER NOT NULL DEFAULT 0;
-- The replica that rotates, and until when.
ALTER TABLE trust ADD COLUMN lease_holder TEXT NOT NULL DEFAULT '';
ALTER TABLE trust ADD COLUMN lease_until INTEGER NOT NULL DEFAULT 0;

-- Replicas with what their connected members have acknowledged.
CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    seen_at INTEGER NOT NULL,
    members INTEGER NOT NULL,
    min_acked INTEGER NOT NULL,
    -- A member that has not acknowledged the present bundle.
    lagging TEXT NOT NULL
);

CREATE TABLE revocations (
    kind TEXT NOT NULL CHECK (kind IN ('identity', 'serial')),
    value TEXT NOT NULL,
    -- Of an identity: certificates that begin before are revoked.
    valid_from INTEGER NOT NULL,
    reason TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- When nothing is left that it could meet; the largest number for never.
    until INTEGER NOT NULL,
    PRIMARY KEY (kind, value)
);

ALTER TABLE audit ADD COLUMN not_after INTEGER NOT NULL DEFAULT 0;
-- How the caller was known: certificate, join-token, local.
ALTER TABLE audit ADD COLUMN attested TEXT NOT NULL DEFAULT '';
