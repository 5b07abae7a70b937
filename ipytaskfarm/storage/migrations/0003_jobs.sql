-- Jobs: what tasks belong to together.
CREATE TABLE jobs (
    id           TEXT PRIMARY KEY,
    spec         TEXT NOT NULL,
    session      TEXT NOT NULL,         -- the client's session
    arrived      INTEGER NOT NULL,      -- so many of its tasks have been submitted
    failed       TEXT NOT NULL          -- why all its tasks are aborted; '': they are not
);
