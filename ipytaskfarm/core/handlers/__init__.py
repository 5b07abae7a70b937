"""What the farm does about each event: one function per event, read from top to bottom.

Every handler has the same shape, ``on_x(farm, session, event, now, out)``: it changes the farm (tasks only through
`core.transition`) and adds to `out` what the shell must save and send.  The table of who handles what
stands in `core.scheduler`.
"""
