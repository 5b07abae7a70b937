-- Failed tasks by cause, for the live view.
CREATE INDEX finals_by_cause ON finals (reason, etype, place) WHERE reason <> '';
