"""``import ipytaskfarm.joblib``: joblib, scikit-learn and whatever else uses joblib may run on a farm.

import ipytaskfarm.joblib
from joblib import parallel_config

with parallel_config("ipytaskfarm", n_jobs=-1):
    GridSearchCV(…).fit(X, y)
"""

from __future__ import annotations

from ipytaskfarm.adapters.joblib_backend import FarmBackend as FarmBackend, register

__all__ = ["FarmBackend"]

register()
