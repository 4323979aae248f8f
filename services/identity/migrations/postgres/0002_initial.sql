-- The same tables as migrations/sqlite/ makes up to the same version; what they mean is said there.
CREATE TABLE trust (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    trust_domain TEXT NOT NULL,
    bundle_version BIGINT NOT NULL,
    generation BIGINT NOT NULL DEFAULT 1,
    newest_own BIGINT NOT NULL DEFAULT 0,
    renew_before BIGINT NOT NULL DEFAULT 0,
    lease_holder TEXT NOT NULL DEFAULT '',
    lease_until BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE authorities (
    id BIGSERIAL PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('root', 'issuer')),
    cert_der BYTEA NOT NULL,
    sealed_key BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    state TEXT NOT NULL DEFAULT 'active',
    root_id BIGINT NOT NULL DEFAULT 0,
    cross_der BYTEA NOT NULL DEFAULT '',
    cross_root_id BIGINT NOT NULL DEFAULT 0,
    signed_until BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    secret_sha256 BYTEA NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('service', 'node')),
    name TEXT NOT NULL,
    may_host TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT
);

CREATE TABLE members (
    kind TEXT NOT NULL CHECK (kind IN ('service', 'node')),
    name TEXT NOT NULL,
    may_host TEXT NOT NULL,
    joined_at BIGINT NOT NULL,
    PRIMARY KEY (kind, name)
);

CREATE TABLE audit (
    id BIGSERIAL PRIMARY KEY,
    time BIGINT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('issue', 'refuse')),
    action TEXT NOT NULL,
    caller TEXT NOT NULL,
    spiffe_id TEXT NOT NULL,
    serial TEXT NOT NULL,
    reason TEXT NOT NULL,
    not_after BIGINT NOT NULL DEFAULT 0,
    attested TEXT NOT NULL DEFAULT ''
);

CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    seen_at BIGINT NOT NULL,
    members BIGINT NOT NULL,
    min_acked BIGINT NOT NULL,
    lagging TEXT NOT NULL
);

CREATE TABLE revocations (
    kind TEXT NOT NULL CHECK (kind IN ('identity', 'serial')),
    value TEXT NOT NULL,
    valid_from BIGINT NOT NULL,
    reason TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (kind, value)
);
