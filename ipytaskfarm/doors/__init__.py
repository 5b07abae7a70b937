"""Doors: each opens onto exactly one outside thing, and nothing else of the package touches that thing.

==============  ==============================================================================
``runtime``     folders, connection files, locks
``host``        the user, folders and descriptors, where some of these may be missing
``keys``        the farm's CURVE keys
``wire``        TCP between controller and peers: ``wire_link`` (peer), ``wire_hub`` (controller)
``wire_lane``   unix sockets between an agent and its engines
``store``       the SQLite database, with ``schema.sql``; ``store_care`` only reads: backup, check
``blobs``       large values, files beside it; ``mapping``: files as memory
``tape``        what a controller heard, to be played again
``pack``        pickle: how values and code travel
``recorder``    the mmapped flight recorder between an engine and its agent
==============  ==============================================================================

Doors import `core`, and each other where one thing is told in terms of another; nothing else of the package.
"""
