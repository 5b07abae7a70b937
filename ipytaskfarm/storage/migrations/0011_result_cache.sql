-- Tasks whose results are kept for equal tasks.
ALTER TABLE tasks ADD COLUMN cache TEXT;
