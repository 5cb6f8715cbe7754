"""Items that carry the key of what they are made of: made once, taken over by later runs.

An item is a file or a folder. Its key is stored in it, last of all or with it, so that an item is
whole when it has a key.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from neurofoundry.runtime.files import link

KeyOf = Callable[[Path], str | None]
"""From an item to its key; None where there is no item, or none that is whole."""


def take(item: Path, key: str, *, earlier: Sequence[Path], key_of: KeyOf) -> bool:
    """Whether ``item`` is now what was made under ``key``.

    If it is not itself, it becomes a link to, or a copy of, the first of ``earlier`` that is; if
    none is, whatever was there is gone, and the item is to be made.
    """
    if key_of(item) == key:
        return True
    if item.is_dir():
        shutil.rmtree(item)
    item.unlink(missing_ok=True)
    source = next((each for each in earlier if key_of(each) == key), None)
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
