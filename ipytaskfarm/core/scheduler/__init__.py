"""The scheduler: events in, decisions out.

`scheduler` dispatches events to `core.handlers`; `state` is the data that it decides about; `transitions` is the only
module that moves tasks.
"""
