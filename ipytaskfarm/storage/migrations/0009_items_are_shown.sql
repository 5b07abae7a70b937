-- The way from the id of an item of a map to its chunk.
CREATE INDEX tasks_with_items ON tasks (id) WHERE items > 0;
