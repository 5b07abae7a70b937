"""The tests.

They prefer real things, then fakes, and mocks last; no test sleeps to wait (see `tests.support.polling`).
"""
