"""Public test suites of other projects, run against the adapters: ``python -m tests.conformance NAME --source DIR``."""
