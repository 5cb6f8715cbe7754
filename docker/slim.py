"""Remove from installed packages what no run of ours reads: tests, headers, build tools."""

import shutil
import sys
from pathlib import Path

UNUSED = ("tests", "test", "testing/tests")
IN_TORCH = ("include", "share", "test")  # the last holds programs in C++

(packages,) = Path(sys.argv[1]).glob("lib/python*/site-packages")
for name in UNUSED:
    for folder in [*packages.glob(f"*/**/{name}")]:
        # torch and numpy import folders of theirs that are called so.
        if folder.is_dir() and folder.relative_to(packages).parts[0] not in ("torch", "numpy"):
            shutil.rmtree(folder)
for name in IN_TORCH:
    shutil.rmtree(packages / "torch" / name, ignore_errors=True)
for name in ("pip", "setuptools"):
    for folder in packages.glob(f"{name}*"):
        shutil.rmtree(folder)
