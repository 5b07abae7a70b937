-- Maps: chunks of items, and the items that are tasks of their own.
ALTER TABLE tasks ADD COLUMN items INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN part_of INTEGER;
ALTER TABLE tasks ADD COLUMN part INTEGER;
CREATE TABLE separate_items (
    chunk        INTEGER NOT NULL,
    part         INTEGER NOT NULL,
    PRIMARY KEY (chunk, part)
) WITHOUT ROWID;
