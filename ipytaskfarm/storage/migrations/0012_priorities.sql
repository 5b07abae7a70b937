-- The priority of tasks can be changed.
CREATE TABLE priority_changes (
    task         INTEGER NOT NULL,
    at_s         REAL NOT NULL,
    before       INTEGER NOT NULL,
    priority     INTEGER NOT NULL,
    PRIMARY KEY (task, at_s)
) WITHOUT ROWID;
ALTER TABLE jobs ADD COLUMN priority INTEGER;
