-- One row: whose authority this is, and which version of the trust bundle is published.
CREATE TABLE trust (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    trust_domain TEXT NOT NULL,
    bundle_version INTEGER NOT NULL
);

-- Certificates of the authority with their keys, sealed by the key-encryption key.
CREATE TABLE authorities (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('root', 'issuer')),
    cert_der BLOB NOT NULL,
    sealed_key BLOB NOT NULL,
    created_at INTEGER NOT NULL
);

CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    secret_sha256 BLOB NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('service', 'node')),
    name TEXT NOT NULL,
    -- JSON: [{"namespace": "...", "app_id": "..."}]
    may_host TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER
);

-- Who joined, and what the last token of its name permits it to host.
CREATE TABLE members (
    kind TEXT NOT NULL CHECK (kind IN ('service', 'node')),
    name TEXT NOT NULL,
    may_host TEXT NOT NULL,
    joined_at INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('issue', 'refuse')),
    action TEXT NOT NULL,
    caller TEXT NOT NULL,
    spiffe_id TEXT NOT NULL,
    serial TEXT NOT NULL,
    reason TEXT NOT NULL
);
