-- Objects that operators applied, as JSON: they are in no file, so this is where they are.
CREATE TABLE applied (
    kind      TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    content   TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) STRICT;
