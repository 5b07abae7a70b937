"""Measurements: one module per question; our farm and other systems are measured side by side in one run.

``python -m benchmarks`` runs all of them and prints a table; ``python -m benchmarks run_loop latency`` runs some.  Each
module has ``measure(options) -> list[Row]``.
"""
