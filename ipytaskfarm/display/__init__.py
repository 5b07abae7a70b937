"""Tables, numbers, states and colours, which look the same in the command, in Python and in notebooks.

`tables` turns rows and columns into text and HTML, and `farm_tables` has the columns for tasks, engines, nodes, jobs
and events.  `text` makes foreign text harmless and formats durations and sizes.  `colours` has the colours for HTML.
`flamegraph` draws stacks.
"""
