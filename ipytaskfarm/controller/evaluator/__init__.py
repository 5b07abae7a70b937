"""The child process of the controller that calls users' ``depend`` functions.

These functions may raise, hang or crash; here they cannot harm the controller. The controller sets time limits and
decides which function is to blame. This process answers one question after the other, and ends with its standard input.
"""
