"""The settings of a farm: `declarations` has each setting once, and `checks` converts users' values."""
