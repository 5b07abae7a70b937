"""The scheduler: events in, decisions out.

`scheduler` dispatches events to `core.handlers`; `state` is what it decides about; `transitions` is the one module that
changes where a task is.
"""
