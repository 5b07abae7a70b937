CREATE TABLE blob_uses (
    task         INTEGER NOT NULL,
    part         TEXT NOT NULL,         -- 'work': what was submitted needs it; 'result': what came out
    digest       TEXT NOT NULL,
    PRIMARY KEY (task, part, digest)
) WITHOUT ROWID;
CREATE INDEX blob_uses_by_digest ON blob_uses (digest);
