"""Interfaces of other libraries to the farm, one module for each library.

A module is imported only when a user asks for it, so the package does not need these libraries.
"""
