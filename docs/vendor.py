"""Bring the page's libraries into the package: ``make vendor``.

The files stand in the repository and in the wheel, so that neither contributors nor users need node or a network. The
versions are here; ``versions.json`` beside the files has their hashes, which a test compares. Modules name one another
by relative paths, because a page without inline scripts has no import map.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "ipytaskfarm" / "web" / "static" / "vendor"


class VendoredPackage(NamedTuple):
    """A package of the npm registry, and which of its files become which of ours."""

    name: str
    version: str
    files: dict[str, str]


PACKAGES = (
    VendoredPackage("preact", "11.2.0", {"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "hooks.js"}),
    VendoredPackage("htm", "3.1.1", {"dist/htm.mjs": "htm.js"}),
    VendoredPackage("@preact/signals-core", "1.14.5", {"dist/signals-core.mjs": "signals-core.js"}),
    VendoredPackage("@preact/signals", "2.11.4", {"dist/signals.mjs": "signals.js"}),
    VendoredPackage("uplot", "1.6.32", {"dist/uPlot.iife.min.js": "uplot.js", "dist/uPlot.min.css": "uplot.css"}),
)

MODULES = {
    "preact": "./preact.js",
    "preact/hooks": "./hooks.js",
    "@preact/signals-core": "./signals-core.js",
}


def rewritten(ours: str, text: str) -> str:
    """Return a file as it is shipped: imports by relative paths, no source maps, uPlot as a module."""
    text = re.sub(r"//# sourceMappingURL=\S+\s*$", "", text)
    for name, path in MODULES.items():
        text = re.sub(rf"""(from\s*)["']{re.escape(name)}["']""", rf'\1"{path}"', text)
    if ours == "uplot.js":
        text = f"{text.rstrip()}\nexport default uPlot;"
    return text.rstrip() + "\n"


def fetched(package: VendoredPackage, folder: Path) -> Path:
    """Let npm fetch the package's archive, and return its path."""
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    name = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
    return folder / name


def main() -> None:
    """Replace the files, and write their versions and hashes."""
    versions = {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for package in PACKAGES:
            archive = fetched(package, Path(temporary))
            hashes = {}
            with tarfile.open(archive) as tar:
                license_text = tar.extractfile("package/LICENSE")
                assert license_text is not None
                (FOLDER / f"LICENSE-{package.name.rpartition('/')[2]}").write_bytes(license_text.read())
                for theirs, ours in package.files.items():
                    member = tar.extractfile(f"package/{theirs}")
                    assert member is not None, theirs
                    text = rewritten(ours, member.read().decode())
                    (FOLDER / ours).write_text(text, encoding="utf-8")
                    hashes[ours] = hashlib.sha256(text.encode()).hexdigest()
            archive_hash = hashlib.sha512(archive.read_bytes()).hexdigest()
            versions[package.name] = {"version": package.version, "archive_sha512": archive_hash, "files": hashes}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
    print(*sorted(path.name for path in FOLDER.iterdir()), sep="\n")


if __name__ == "__main__":
    main()
