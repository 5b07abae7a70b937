-- Which tasks were submitted again: a group of failures is submitted again once.
CREATE INDEX tasks_by_retried ON tasks (json_extract(rules, '$.retry_of')) WHERE json_extract(rules, '$.retry_of') IS NOT NULL;
