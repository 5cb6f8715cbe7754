"""Items that carry the key of what they are made from: made once, reused by later runs.

An item is a file or a folder. Its key is stored in it, with the content or after all of it, so
that an item that has a key is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from neurofoundry.runtime.files import link
from neurofoundry.runtime.verify import is_altered

KeyOf = Callable[[Path], str | None]
"""From an item to its key; None where there is no item, or it is not whole."""


def take(item: Path, key: str, *, earlier: Sequence[Path], key_of: KeyOf) -> bool:
    """Make ``item`` the one with this ``key`` if there is one, and return whether there is.

    An item of another key is removed and replaced by a link to the first of ``earlier`` that has
    the key and is what was written, or by a copy where there are no hard links. If there is none,
    the item is to be made.
    """
    if key_of(item) == key:
        return True
    if item.is_dir():
        shutil.rmtree(item)
    item.unlink(missing_ok=True)
    usable = (path for path in earlier if key_of(path) == key and not is_altered(path))
    source = next(usable, None)
    if source is None:
        return False
    item.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        copied = item.with_name(f".{item.name}.copied")
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(source, copied, copy_function=link)
        copied.rename(item)
    else:
        link(source, item)
    return True
