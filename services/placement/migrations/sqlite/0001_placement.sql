-- One row: the epoch that versions belong to, and the base of slot epochs.
CREATE TABLE service (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    epoch      TEXT    NOT NULL,
    epoch_base INTEGER NOT NULL
) STRICT;

-- Hosts that own slots, or would if there were any; `number` is what slots refer to.
CREATE TABLE hosts (
    id          TEXT    PRIMARY KEY,
    number      INTEGER NOT NULL,
    namespace   TEXT    NOT NULL,
    app_id      TEXT    NOT NULL,
    node        TEXT    NOT NULL,
    capacity    INTEGER NOT NULL,
    -- One name per line.
    actor_types TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Kept for ever, also without hosts: epochs must not come again.
CREATE TABLE types (
    namespace   TEXT    NOT NULL,
    actor_type  TEXT    NOT NULL,
    slots       INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    floor_epoch INTEGER NOT NULL,
    PRIMARY KEY (namespace, actor_type)
) STRICT, WITHOUT ROWID;

-- 64 slots per row, each 4 bytes of the owner's number and 8 bytes of epoch, little-endian: a
-- change of a few slots writes a few rows.
CREATE TABLE slots (
    namespace  TEXT    NOT NULL,
    actor_type TEXT    NOT NULL,
    chunk      INTEGER NOT NULL,
    owners     BLOB    NOT NULL,
    PRIMARY KEY (namespace, actor_type, chunk),
    FOREIGN KEY (namespace, actor_type) REFERENCES types (namespace, actor_type)
) STRICT, WITHOUT ROWID;
