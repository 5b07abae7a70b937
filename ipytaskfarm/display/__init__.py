"""What people see: tables, numbers, states and colours, the same in the command, in Python and in notebooks.

`tables` turns rows and columns into text and HTML, `farm_tables` has the columns of tasks, engines, nodes, jobs and
events, `text` makes foreign text harmless and writes durations and sizes, `colours` is what HTML is coloured with.
"""
