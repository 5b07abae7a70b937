"""Measurements.  ``python -m benchmarks`` runs them all, each beside something everybody knows, in the same run."""
