-- The same tables as migrations/sqlite/ makes up to the same version; what they mean is said there.
CREATE TABLE service (
    id         BIGINT PRIMARY KEY CHECK (id = 1),
    epoch      TEXT   NOT NULL,
    epoch_base BIGINT NOT NULL
);

CREATE TABLE hosts (
    id          TEXT   PRIMARY KEY,
    number      BIGINT NOT NULL,
    namespace   TEXT   NOT NULL,
    app_id      TEXT   NOT NULL,
    node        TEXT   NOT NULL,
    capacity    BIGINT NOT NULL,
    actor_types TEXT   NOT NULL
);

CREATE TABLE types (
    namespace   TEXT   NOT NULL,
    actor_type  TEXT   NOT NULL,
    slots       BIGINT NOT NULL,
    version     BIGINT NOT NULL,
    floor_epoch BIGINT NOT NULL,
    PRIMARY KEY (namespace, actor_type)
);

CREATE TABLE slots (
    namespace  TEXT   NOT NULL,
    actor_type TEXT   NOT NULL,
    chunk      BIGINT NOT NULL,
    owners     BYTEA  NOT NULL,
    PRIMARY KEY (namespace, actor_type, chunk),
    FOREIGN KEY (namespace, actor_type) REFERENCES types (namespace, actor_type)
);
