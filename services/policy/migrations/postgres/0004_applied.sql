-- The same table as migrations/sqlite/ makes; what it means is said there.
CREATE TABLE applied (
    kind      TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    content   TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
);
