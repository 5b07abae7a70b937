"""The child process of the controller that calls users' ``depend`` functions.

They are anybody's code: here they can raise, hang or crash without the controller.  Time limits and blame are the
controller's; this process answers one question after the other, and ends with its standard input.
"""
