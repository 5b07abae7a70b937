"""Run joblib, scikit-learn and other users of joblib on a farm.

    import ipytaskfarm.joblib
    from joblib import parallel_config

    with parallel_config("ipytaskfarm", n_jobs=-1):
        GridSearchCV(…).fit(X, y)

The import registers joblib's backend ``ipytaskfarm``.
"""

from __future__ import annotations

from ipytaskfarm.adapters.joblib_backend import FarmBackend as FarmBackend, register

__all__ = ["FarmBackend"]

register()
