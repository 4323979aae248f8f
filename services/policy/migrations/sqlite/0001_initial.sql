-- Numbers given to label sets. A number whose last workload is gone keeps its labels until the grace
-- period is over, so that it is not reused while a node may still know it by its old meaning.
CREATE TABLE identity (
    number      INTEGER PRIMARY KEY CHECK (number BETWEEN 256 AND 65535),
    labels      TEXT NOT NULL UNIQUE,
    released_at INTEGER
) STRICT;

-- Workloads as their nodes registered them: after a restart, nodes are served the same cluster as before.
CREATE TABLE workload (
    id      TEXT PRIMARY KEY,
    node    TEXT NOT NULL,
    message BLOB NOT NULL
) STRICT;

-- The last good content of each file of the resources folder: a file that is bad at a restart goes on
-- meaning what it meant before.
CREATE TABLE good_file (
    path    TEXT PRIMARY KEY,
    content BLOB NOT NULL
) STRICT;
