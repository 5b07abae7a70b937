-- For people.  What is handed out may be running or waiting on its engine: only the controller knows.
-- An item of a map that shared a run has the times of that run, and an equal share of its duration.
CREATE VIEW task_states AS
WITH RECURSIVE handed (task, engine_id) AS MATERIALIZED (
    SELECT json_extract(run.value, '$[0]'), max(handouts.engine_id)
    FROM handouts, json_each(handouts.runs) AS run GROUP BY 1
),
item (chunk, part, items) AS (
    SELECT id, 0, items FROM tasks WHERE items > 0
    UNION ALL
    SELECT chunk, part + 1, items FROM item WHERE part + 1 < items
),
shown (id, kept, sharing) AS (          -- the id, the task whose row it has, how many items share that row
    SELECT id, id, 1 FROM tasks WHERE items = 0
    UNION ALL
    SELECT i.chunk + 1 + i.part, i.chunk, i.items - (SELECT count(*) FROM separate_items AS x WHERE x.chunk = i.chunk)
    FROM item AS i
    WHERE NOT EXISTS (SELECT 1 FROM separate_items AS x WHERE x.chunk = i.chunk AND x.part = i.part)
)
SELECT
    s.id                                                            AS id,
    CASE WHEN f.task IS NULL THEN 'scheduled' WHEN f.reason = '' THEN 'succeeded' ELSE 'failed' END AS state,
    CASE WHEN f.task IS NOT NULL THEN f.reason
         WHEN h.task IS NOT NULL THEN 'handed to engine ' || h.engine_id
         WHEN p.task IS NOT NULL THEN 'waiting for attempt ' || (p.attempt + 1)
         ELSE 'queued' END                                          AS reason,
    t.name                                                          AS name,
    coalesce(f.attempts, p.attempt, 0)                              AS attempts,
    f.engine_id                                                     AS engine_id,
    f.node                                                          AS node,
    datetime(t.submitted_s, 'unixepoch', 'localtime')               AS submitted,
    datetime(f.started_s, 'unixepoch', 'localtime')                 AS started,
    datetime(f.completed_s, 'unixepoch', 'localtime')               AS completed,
    round(f.run_s / s.sharing, 6)                                   AS run_s,
    f.etype || ': ' || f.value                                      AS error,
    f.place                                                         AS place
FROM shown AS s
CROSS JOIN tasks AS t ON t.id = s.kept
LEFT JOIN finals AS f ON f.task = s.kept
LEFT JOIN progress AS p ON p.task = s.kept
LEFT JOIN handed AS h ON h.task = s.kept;
