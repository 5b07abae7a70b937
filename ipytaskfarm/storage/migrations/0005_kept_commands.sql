-- What clients did on engines by hand and is done again on their replacements, in the order of the numbers.
CREATE TABLE kept_commands (
    number       INTEGER PRIMARY KEY,
    session      TEXT NOT NULL,         -- the client's session, and the number of the command there
    n            INTEGER NOT NULL,
    verb         TEXT NOT NULL,
    body         BLOB NOT NULL,
    text         TEXT NOT NULL,         -- for people
    names        TEXT NOT NULL,         -- JSON: the names that a push binds
    sticky       TEXT NOT NULL          -- JSON: keys of the sticky entries that stand for the body
);

-- On which engine ids.
CREATE TABLE kept_on (
    engine_id    INTEGER NOT NULL,
    number       INTEGER NOT NULL,
    why          TEXT NOT NULL,         -- '': it is done again; else why not, and there is no row in kept_commands
    text         TEXT NOT NULL,         -- for people, of what is not done again
    PRIMARY KEY (engine_id, number)
) WITHOUT ROWID;
CREATE INDEX kept_on_by_number ON kept_on (number);

-- Which large values kept commands need.
CREATE TABLE kept_blobs (
    digest       TEXT NOT NULL,
    number       INTEGER NOT NULL,
    bytes        INTEGER NOT NULL,
    PRIMARY KEY (digest, number)
) WITHOUT ROWID;
