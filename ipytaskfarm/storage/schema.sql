-- The store of a farm: everything that must outlive its controller.
--
-- Read it with:  sqlite3 -readonly store.sqlite 'SELECT * FROM task_states LIMIT 20'
--
-- Written by storage/store.py alone, one transaction per turn of the controller's loop.  The value of
-- `PRAGMA user_version` is the number of this schema; to change it, add a migration (see migrations/README.md)
-- and change this file too: a new store is made from here, an old one is brought here step by step.
--
-- Words: a *task* is one unit of work; an *attempt* is one run of it, numbered 1, 2, 3 ... within the task.
-- Columns ending in _s are seconds: since 1970 (UTC) where the name says when, plain durations in run_s.

-- One row: whose store this is.
CREATE TABLE farm (
    only         INTEGER PRIMARY KEY CHECK (only = 1),
    incarnation  TEXT NOT NULL,         -- the farm's name for life; another one is another farm
    epoch        INTEGER NOT NULL,      -- how many controllers have lived on this store; fences off an earlier one
    clean        INTEGER NOT NULL,      -- 1: the last controller closed the store
    created_s    REAL NOT NULL
);

-- Task ids given to clients.  Kept for ever, so that no id is given twice and a late resend is recognised; what a
-- client that has ended did not use is given to the next one.
CREATE TABLE blocks (
    first        INTEGER PRIMARY KEY,
    last         INTEGER NOT NULL,      -- inclusive
    accepted_upto INTEGER NOT NULL,     -- all ids up to here have arrived; first - 1: none
    session      TEXT NOT NULL          -- the client's session; '': it has ended
);

-- Tasks as they were accepted.  A row is written once and stays until the task is cleared.
CREATE TABLE tasks (
    id           INTEGER PRIMARY KEY,
    queue_seq    INTEGER NOT NULL,      -- order of acceptance; progress.queue_seq counts where there is one
    name         TEXT,
    rules        TEXT,                  -- JSON, without the name; NULL: the task was submitted without rules
    function     TEXT,                  -- digest, see functions; NULL: a string task
    session      TEXT NOT NULL,
    submitted_s  REAL,
    payload      BLOB NOT NULL,         -- opaque to controller and store
    needs        TEXT,                  -- JSON: what it waits for, whose results it takes; NULL: nothing
    job          TEXT,                  -- the job it belongs to, see jobs
    parent       INTEGER,               -- the task that submitted it
    spawn        TEXT,                  -- its trial, and which of its submissions it came with: "1.3", and a checksum
    items        INTEGER NOT NULL DEFAULT 0, -- a chunk of a map: so many items, whose ids follow its own; 0: none
    part_of      INTEGER,               -- it runs one item of this chunk, whose payload is its own
    part         INTEGER,               -- ... the item of this index
    cache        TEXT                   -- JSON: the key of its result in the result cache; NULL: it does not use it
);
CREATE INDEX tasks_by_job ON tasks (job) WHERE job IS NOT NULL;
CREATE INDEX tasks_by_parent ON tasks (parent) WHERE parent IS NOT NULL;
CREATE INDEX tasks_with_items ON tasks (id) WHERE items > 0;
-- Which tasks were submitted again: a group of failures is submitted again once.
CREATE INDEX tasks_by_retried ON tasks (json_extract(rules, '$.retry_of')) WHERE json_extract(rules, '$.retry_of') IS NOT NULL;

-- Items that do not belong to their chunk any more: they are tasks of their own, or were cleared.
CREATE TABLE separate_items (
    chunk        INTEGER NOT NULL,
    part         INTEGER NOT NULL,
    PRIMARY KEY (chunk, part)
) WITHOUT ROWID;

-- How far a task has come that went back to its queue at least once.
CREATE TABLE progress (
    task         INTEGER PRIMARY KEY,
    queue_seq    INTEGER NOT NULL,      -- its new place
    attempt      INTEGER NOT NULL,      -- attempts begun so far
    errors       INTEGER NOT NULL,      -- retries spent
    losses       INTEGER NOT NULL,      -- engines lost
    recovery     INTEGER NOT NULL,      -- how far down the chain of recovery tasks; 0: the task itself
    payload      BLOB,                  -- the recovery task's own payload and function, when it is its turn
    function     TEXT,
    until_s      REAL,                  -- it waits so long; NULL: for nothing but an engine
    trial        INTEGER NOT NULL DEFAULT 1, -- 1 + runs that ended with a deferral
    began_s      REAL,                  -- when its first trial began
    state        BLOB,                  -- what a trial left for the next one; opaque
    received     INTEGER NOT NULL DEFAULT 0 -- so many of the messages to it were read by earlier trials
);

-- Attempts that were not the task's end.
CREATE TABLE attempts (
    task         INTEGER NOT NULL,
    number       INTEGER NOT NULL,
    engine_id    INTEGER NOT NULL,
    node         TEXT NOT NULL,
    started_s    REAL,
    ended_s      REAL,
    outcome      TEXT NOT NULL,         -- '' succeeded, else why not
    etype        TEXT,                  -- the failure: the exception's type, what it said, where in the user's code
    value        TEXT,
    place        TEXT,
    PRIMARY KEY (task, number)
) WITHOUT ROWID;

-- Changes of priorities, for the history: a task's rules have its present priority.
CREATE TABLE priority_changes (
    task         INTEGER NOT NULL,
    at_s         REAL NOT NULL,
    before       INTEGER NOT NULL,
    priority     INTEGER NOT NULL,
    PRIMARY KEY (task, at_s)
) WITHOUT ROWID;

-- Ends of tasks.  The primary key is the promise: one end per task, recorded once.
CREATE TABLE finals (
    task         INTEGER PRIMARY KEY,
    reason       TEXT NOT NULL,         -- '' succeeded, else why it failed
    engine_id    INTEGER NOT NULL,
    node         TEXT NOT NULL,
    attempts     INTEGER NOT NULL,
    started_s    REAL,
    run_s        REAL,
    completed_s  REAL,
    etype        TEXT,
    value        TEXT,
    place        TEXT,
    body         BLOB                   -- the encoded result; opaque to controller and store
);

-- Failed tasks by cause: how the live view groups them.
CREATE INDEX finals_by_cause ON finals (reason, etype, place) WHERE reason <> '';

-- Submissions that can never be accepted: fetching the id raises this error.
CREATE TABLE refusals (
    task         INTEGER PRIMARY KEY,
    etype        TEXT NOT NULL,
    text         TEXT NOT NULL
);

-- Batches that engines hold and have not wholly answered.
CREATE TABLE handouts (
    number       INTEGER PRIMARY KEY,
    engine       TEXT NOT NULL,         -- the engine's incarnation
    engine_id    INTEGER NOT NULL,
    runs         TEXT NOT NULL,         -- JSON: [[task, attempt], ...]
    at_s         REAL NOT NULL
);

-- The processes of agents.  A controller on the same machine knows which of them are gone.
CREATE TABLE agents (
    session      TEXT PRIMARY KEY,
    node         TEXT NOT NULL,
    host         TEXT NOT NULL,         -- the machine, over all its boots
    boot         TEXT NOT NULL,
    namespace    TEXT NOT NULL,         -- in which the pid counts
    pid          INTEGER NOT NULL,
    started_s    REAL NOT NULL          -- since the boot
) WITHOUT ROWID;

-- Code of functions, once each.
CREATE TABLE functions (
    digest       TEXT PRIMARY KEY,
    code         BLOB NOT NULL
);

-- What keeps large values alive, which lie in the blob folder under these names (SHA-256): the tasks that need them.
CREATE TABLE blob_uses (
    task         INTEGER NOT NULL,
    part         TEXT NOT NULL,         -- 'work': what was submitted needs it; 'result': what came out
    digest       TEXT NOT NULL,
    PRIMARY KEY (task, part, digest)
) WITHOUT ROWID;
CREATE INDEX blob_uses_by_digest ON blob_uses (digest);

-- Jobs: what tasks belong to together.  `spec` is JSON: name, how many tasks, default environment.
CREATE TABLE jobs (
    id           TEXT PRIMARY KEY,
    spec         TEXT NOT NULL,
    session      TEXT NOT NULL,         -- the client's session
    arrived      INTEGER NOT NULL,      -- so many of its tasks have been submitted
    failed       TEXT NOT NULL,         -- why all its tasks are aborted; '': they are not
    paused       INTEGER NOT NULL DEFAULT 0, -- 1: nothing of it is started
    priority     INTEGER                -- was set for all its tasks, later ones too; NULL: each has its own
);

-- Messages to tasks that run, and from them.
CREATE TABLE mail (
    task         INTEGER NOT NULL,
    outgoing     INTEGER NOT NULL,      -- 0: to the task; 1: from it
    seq          INTEGER NOT NULL,      -- 1, 2, 3 ... of that direction
    sender       TEXT NOT NULL,         -- for people
    mark         TEXT NOT NULL,         -- the sender's own name for it: a repeated one is taken once
    at_s         REAL NOT NULL,
    body         BLOB NOT NULL,         -- a packed value; opaque
    PRIMARY KEY (task, outgoing, seq)
) WITHOUT ROWID;

-- Farm-wide values that outlive the controller.
CREATE TABLE settings (
    key          TEXT PRIMARY KEY,
    value
);

-- Commands that every fresh engine runs, in this order.
CREATE TABLE sticky (
    place        INTEGER PRIMARY KEY,
    key          TEXT NOT NULL UNIQUE,
    verb         TEXT NOT NULL,
    body         BLOB NOT NULL,
    text         TEXT NOT NULL          -- for people
);

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
