-- The same tables as migrations/sqlite/ makes up to the same version; what they mean is said there.
CREATE TABLE identity (
    number      BIGINT PRIMARY KEY CHECK (number BETWEEN 256 AND 65535),
    labels      TEXT NOT NULL UNIQUE,
    released_at BIGINT
);

CREATE TABLE workload (
    id      TEXT PRIMARY KEY,
    node    TEXT NOT NULL,
    message BYTEA NOT NULL
);

CREATE TABLE good_file (
    path    TEXT PRIMARY KEY,
    content BYTEA NOT NULL
);

CREATE TABLE node (
    name    TEXT PRIMARY KEY,
    message BYTEA NOT NULL
);

CREATE TABLE service_address (
    address   TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL
);

CREATE TABLE object (
    kind       TEXT NOT NULL,
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    created    BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    digest     BIGINT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
);
