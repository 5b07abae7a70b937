"""Shared parts of tests: fakes, worlds to run in, polling."""
