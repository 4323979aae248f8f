-- Nodes as they described themselves: their addresses and pod ranges are known after a restart before
-- they are back, so that no node takes them for the outside meanwhile.
CREATE TABLE node (
    name    TEXT PRIMARY KEY,
    message BLOB NOT NULL
) STRICT;

-- Virtual addresses given to Services whose manifests name none.
CREATE TABLE service_address (
    address   TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL
) STRICT;
