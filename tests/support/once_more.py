"""Run the failed tests of the last run once more, alone, and say which passed then.

Several thousand tests run beside each other on two busy cores: now and then one loses its engine or its browser to the
load.  A test that fails twice fails the whole, and so do more than a few failures at once, which no load explains.  One
that passes alone is named at the end, because it is to be made robust.  `make test` runs this module after a failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")
MOST = 4


def main() -> int:
    """Return the exit status of the whole run: 0 when each failed test passed the second time."""
    failed = list(json.loads(LAST_FAILED.read_text()))
    if not all(".py" in name for name in failed):
        print(f"pytest itself failed, see above: {', '.join(failed)}")
        return 1
    if len(failed) > MOST:
        print(f"{len(failed)} tests failed, see above: too many to blame the load, so none is run again")
        return 1
    print(f"failed, see above; run once more, alone: {', '.join(failed)}", flush=True)
    if subprocess.run([sys.executable, "-m", "pytest", *failed]).returncode:
        print("failed twice: see above")
        return 1
    print(f"UNSTEADY: failed once, passed alone: {', '.join(failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
