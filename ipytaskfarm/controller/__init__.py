"""The one process per farm that decides, records and hands out.

`loop` turns: take what has arrived, let `core.scheduler.scheduler` decide, commit once, send.
Everything here is the shell around that decision; nothing here unpickles anything.
"""
