"""The store: SQLite and the files beside it, which outlive a controller.

``store`` writes; ``rows`` has the SQL; ``schema.sql`` and ``migrations`` define the tables; ``backup`` copies and
checks a store; ``blobs`` keeps large values as files, and ``blob_copies`` their copies on other machines; ``event_log``
records a controller's events for a replay.
"""
