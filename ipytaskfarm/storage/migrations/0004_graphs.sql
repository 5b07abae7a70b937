-- Graphs, trials, children, messages to and from tasks, paused jobs.
ALTER TABLE tasks ADD COLUMN needs TEXT;
ALTER TABLE tasks ADD COLUMN job TEXT;
ALTER TABLE tasks ADD COLUMN parent INTEGER;
ALTER TABLE tasks ADD COLUMN spawn TEXT;
CREATE INDEX tasks_by_job ON tasks (job) WHERE job IS NOT NULL;
CREATE INDEX tasks_by_parent ON tasks (parent) WHERE parent IS NOT NULL;
UPDATE tasks SET job = json_extract(rules, '$.job') WHERE rules IS NOT NULL;
ALTER TABLE progress ADD COLUMN until_s REAL;
ALTER TABLE progress ADD COLUMN trial INTEGER NOT NULL DEFAULT 1;
ALTER TABLE progress ADD COLUMN began_s REAL;
ALTER TABLE progress ADD COLUMN state BLOB;
ALTER TABLE progress ADD COLUMN received INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
CREATE TABLE mail (
    task         INTEGER NOT NULL,
    outgoing     INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    sender       TEXT NOT NULL,
    mark         TEXT NOT NULL,
    at_s         REAL NOT NULL,
    body         BLOB NOT NULL,
    PRIMARY KEY (task, outgoing, seq)
) WITHOUT ROWID;
