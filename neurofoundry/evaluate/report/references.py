"""References of a text: those that it cites, numbered as they appear."""

from __future__ import annotations

import re

HEADING = "\n## References\n"


def only_cited(text: str) -> str:
    """Return a text in which the list under ``HEADING`` holds what is cited as [1] above it."""
    body, heading, listed = text.partition(HEADING)
    entries = dict(re.findall(r"^(\d+)\. (.+)$", listed, re.MULTILINE))
    cited = dict.fromkeys(number for number in re.findall(r"\[(\d+)\]", body) if number in entries)
    numbers = {old: str(new) for new, old in enumerate(cited, start=1)}
    body = re.sub(r"\[(\d+)\]", lambda found: f"[{numbers.get(found[1], found[1])}]", body)
    lines = [f"{numbers[old]}. {entries[old]}" for old in cited]
    return body + heading + "\n".join(["", *lines]) if heading else text
