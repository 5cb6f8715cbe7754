"""Where links in a folder may lead: nowhere but into it, or into a store of contents."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from neurofoundry.errors import DataError

CONTENT_STORE = re.compile(
    r"/[0-9a-f]{2}/[0-9a-f]{30}$|/\.git/annex/objects/|/annex/objects/[^/]+/[^/]+/([^/]+)/\1$"
)
"""Data versioning tools keep files under the hash of their content and may leave links to them: DVC
by 2 and 30 digits, git-annex under a key, twice, in a repository, a submodule or a RIA store."""


def lies_within(name: str) -> bool:
    """Return whether the name of a file, as a record or table of a folder says it, stays in it."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def check_links(folder: Path) -> None:
    """Raise DataError where a file below ``folder`` is not in it: what its maker names is not read.

    ``folder`` itself may be a link, which is its user's.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(parent, name)
            shown = folder / path.relative_to(root)
            if path.is_symlink():
                check_link(path, root, shown)
            elif not (path.is_file() or path.is_dir()):
                raise DataError(f"{shown}: a pipe or device, expected a file. Remove it.")


def check_link(path: Path, root: Path, shown: Path) -> None:
    """Raise DataError where ``path``, called ``shown``, leads out of the folder ``root``."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise DataError(f"{shown}: a link to nothing ({os.readlink(path)}). Remove it.") from error
    if not (target.is_relative_to(root) or CONTENT_STORE.search(str(target))):
        raise DataError(
            f"{shown}: a link out of its folder, to {target}. Nothing outside the folder is read: "
            "if that is what you want, copy the folder with what its links name (`cp -rL`)."
        )
