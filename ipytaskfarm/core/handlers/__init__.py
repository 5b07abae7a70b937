"""The farm's handling of each event: one function per event, to be read from top to bottom.

Every handler has the same form, ``on_x(farm, session, event, now, out)``. It changes the farm (tasks only through
`core.scheduler.transitions`), and adds to `out` what the controller's loop must save and send.
`core.scheduler.scheduler` has the table of events and handlers.
"""
