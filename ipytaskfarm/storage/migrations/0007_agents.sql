-- The processes of agents.
CREATE TABLE agents (
    session      TEXT PRIMARY KEY,
    node         TEXT NOT NULL,
    host         TEXT NOT NULL,
    boot         TEXT NOT NULL,
    namespace    TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    started_s    REAL NOT NULL
) WITHOUT ROWID;
