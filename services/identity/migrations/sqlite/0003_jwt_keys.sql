-- Keys that sign JWT-SVIDs live as roots and issuers do. SQLite changes no CHECK of a table, so the
-- table is made anew; of a key, cert_der holds the public half as a JWK in JSON.
CREATE TABLE authorities_with_keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('root', 'issuer', 'jwt')),
    cert_der BLOB NOT NULL,
    sealed_key BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'active',
    root_id INTEGER NOT NULL DEFAULT 0,
    cross_der BLOB NOT NULL DEFAULT x'',
    cross_root_id INTEGER NOT NULL DEFAULT 0,
    signed_until INTEGER NOT NULL DEFAULT 0
);
INSERT INTO authorities_with_keys
SELECT id, kind, cert_der, sealed_key, created_at, state, root_id, cross_der, cross_root_id, signed_until
FROM authorities;
DROP TABLE authorities;
ALTER TABLE authorities_with_keys RENAME TO authorities;
