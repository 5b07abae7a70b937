"""Measurements: one module per question, ours and the peers side by side in one run.

``python -m benchmarks`` runs them all and prints a table; ``python -m benchmarks run_loop latency`` runs some.  Each
module has ``measure(options) -> list[Row]``.
"""
