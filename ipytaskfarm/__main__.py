"""``python -m ipytaskfarm`` is the ``ipytaskfarm`` command."""

import sys

from ipytaskfarm.cli import main

sys.exit(main())
