"""SQLite and the files beside it: what outlives a controller.

``store`` writes, ``rows`` holds the SQL, ``schema.sql`` and ``migrations`` the tables, ``backup`` copies and checks a
store, ``blobs`` keeps large values as files, ``blob_copies`` their copies on other machines, ``event_log`` what a
controller heard, to be replayed.
"""
