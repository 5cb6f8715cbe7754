"""Commands on a machine that lacks what others have: run by a user whom nobody knows, without a
home, in a mount namespace of its own (`unshare(1)`, `mount(1)`, `setpriv(1)`; needs root)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER = 10001

# A home of root may hide the interpreter from others: in this namespace it holds nothing else.
OPEN_THE_INTERPRETER = """
python={prefix}; hidden=$(mktemp -d)
mount --bind "$python" "$hidden"
mount -t tmpfs -o mode=755 tmpfs /root
mkdir -p "$python"
mount --bind "$hidden" "$python"
"""


def skip_unless_possible() -> None:
    """Skip the test, with the reason, where namespaces cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("mounts and other users need root")
    if lacking := [tool for tool in ("unshare", "mount", "setpriv") if not shutil.which(tool)]:
        pytest.skip(f"this system has no {', '.join(lacking)}")
    trial = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if (done := subprocess.run(trial, capture_output=True, text=True)).returncode:
        pytest.skip(f"this container may not mount: {done.stderr.strip()}")


def run(
    words: Sequence[str], folder: Path, *, mounts: str = "", environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run neurofoundry in a folder after the shell commands ``mounts``."""
    prefix = sys.base_prefix
    opened = OPEN_THE_INTERPRETER.format(prefix=prefix) if prefix.startswith("/root/") else ""
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment}
    command = [
        *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "env", "-i"),
        *(f"{name}={value}" for name, value in variables.items()),
        *(sys.executable, "-B", "-m", "neurofoundry", *words),
    ]
    script = f"set -e\n{opened}{mounts}\ncd {shlex.quote(str(folder))}\nexec {shlex.join(command)}"
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    return subprocess.run(unshare, capture_output=True, text=True)
