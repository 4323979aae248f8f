-- When each object was first seen and how often its content changed since: of two routes that are equally
-- specific the older one wins, also after a restart.
CREATE TABLE object (
    kind       TEXT NOT NULL,
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    created    INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    digest     INTEGER NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) STRICT;
