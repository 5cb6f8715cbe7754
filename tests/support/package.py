"""A copy of the package whose files a test can change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import neurofoundry

PACKAGE = Path(neurofoundry.__file__).parent


class Copy:
    """A copy of the package in ``folder``, and what runs in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "neurofoundry"
        shutil.copytree(PACKAGE, self.root, ignore=shutil.ignore_patterns("__pycache__"))
        self.environment = {**os.environ, "PYTHONPATH": str(folder)}

    def code(self, *entries: str) -> dict[str, str]:
        """`deciding_code` as the copy itself sees it."""
        script = "import json, sys; from neurofoundry.runtime.code import deciding_code as code;"
        script += "print(json.dumps(dict(code(*sys.argv[1:]))))"
        done = subprocess.run(
            [sys.executable, "-c", script, *entries],
            cwd=self.root.parent,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        code: dict[str, str] = json.loads(done.stdout)
        return code

    def append(self, name: str, text: str) -> None:
        """Add lines to a file."""
        path = self.root / name
        path.write_text(f"{path.read_text()}\n{text}\n")

    def replace(self, name: str, old: str, new: str) -> None:
        """Change what must be in a file."""
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
