"""What has become of a process."""

from __future__ import annotations

import time
from pathlib import Path


def ended(process: int, within: float = 60) -> bool:
    """Wait until a process is no more, or only a name that nobody has asked for (a zombie)."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False
