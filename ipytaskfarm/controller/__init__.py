"""The controller: the one process per farm that decides, records and hands out.

`loop` makes turns: it receives events, lets `core.scheduler.scheduler` decide, commits once, and sends. All modules
here are the shell around that decision. None of them unpickles anything.
"""
