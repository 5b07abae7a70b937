"""Other libraries' interfaces over the farm, one file for each library.

Nothing here is imported unless a user asks for it, and the package needs none of those libraries.
"""
