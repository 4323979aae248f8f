-- How a member proved who it is: join-token, kubernetes. What a node of Kubernetes may host is asked
-- there as well.
ALTER TABLE members ADD COLUMN attested TEXT NOT NULL DEFAULT 'join-token';

-- JWTs that were shown and are not over, by the hash of issuer and jti: each is good for one key.
CREATE TABLE used_jwts (
    id TEXT PRIMARY KEY,
    key_sha256 TEXT NOT NULL,
    until BIGINT NOT NULL
);
CREATE INDEX used_jwts_until ON used_jwts (until);
