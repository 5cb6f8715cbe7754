"""Numbers as tables have them: what a comma stands for, and which values are most likely codes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

Comma = Literal["decimal", "dots", "thousands"]
"""What commas stand for; 'dots': they are decimal, and dots stand between thousands."""

_PLAIN = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE)
_DECIMAL = re.compile(r"-?\d+,\d+(?:e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_DOTS = re.compile(r"-?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?")
"""Thousands as in German: 1.234,5; 1.234 alone may be a decimal."""
_SET_APART = re.compile("(?<=\\d)[\u00a0\u2009\u202f'’](?=\\d{3}(?!\\d))")
"""What stands between thousands in French and Swiss numbers, and is nothing else."""
MOST_STRAYS = 0.2
"""Share of the values beyond which those that lie apart are a group of their own."""
FEWEST = 5
"""Values without which nothing can be said to lie apart."""


def comma(texts: Iterable[str]) -> Comma | None:
    """Return what commas stand for in a column; None where no cell tells, or cells disagree.

    '1,234' can be either; '45,5' and '0,234' are decimal, '1,234.5' and '1,234,567' are not, and
    '1.234,5' and '1.234.567' have dots between thousands.

    >>> comma(["1,234", "2,5"])
    'decimal'
    """
    said: set[Comma] = set()
    for text in map(_plain, texts):
        decimal, thousands = bool(_DECIMAL.fullmatch(text)), bool(_THOUSANDS.fullmatch(text))
        if decimal != thousands:
            said.add("decimal" if decimal else "thousands")
        if _DOTS.fullmatch(text) and not _PLAIN.fullmatch(text):
            said.add("dots")
    if said == {"decimal", "dots"}:
        return "dots"
    return said.pop() if len(said) == 1 else None


def readings(text: str, comma: Comma | None) -> set[float]:
    """Return the numbers that a cell may be, in a column where commas stand for ``comma``.

    >>> readings("1,234", None) == {1.234, 1234}, readings("1.234", None) == {1.234}
    (True, True)
    >>> readings("1.234", "decimal") == {1.234, 1234}, readings("1.234", "dots") == {1234}
    (True, True)
    """
    possible: tuple[Comma | None, ...] = (comma,)
    if comma == "decimal":
        possible = ("decimal", "dots")
    elif comma is None and "," in text:
        possible = ("decimal", "thousands")
    return {number for each in possible if (number := read(text, each)) is not None}


def read(text: str, comma: Comma | None) -> float | None:
    """Return a number as a cell has it; None for what is none, or may be two.

    >>> read("1,234", "thousands"), read("1,234", "decimal"), read("1,234", None)
    (1234.0, 1.234, None)
    """
    text = _plain(text)
    if comma == "dots" and _DOTS.fullmatch(text):
        text = text.replace(".", "")
    decimal, thousands = bool(_DECIMAL.fullmatch(text)), bool(_THOUSANDS.fullmatch(text))
    if decimal and thousands and comma is None:
        return None
    if decimal and not (thousands and comma == "thousands"):
        text = text.replace(",", ".")
    elif thousands:
        text = text.replace(",", "")
    if not _PLAIN.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _plain(text: str) -> str:
    return _SET_APART.sub("", text.strip()).replace("−", "-")


def strays(values: Iterable[float]) -> dict[float, int]:
    """Return the values that lie farther from all others than these span, and how often: most
    likely codes for what is missing. So are rare values below zero where most are above it.

    >>> strays([24, 27, 30, 29, 22, 28, 25, 26, 999, -4])
    {-4: 1, 999: 1}
    """
    counts = Counter(value for value in values if not math.isnan(value))
    total = counts.total()
    if total < FEWEST:
        return {}
    kept = sorted(counts)
    negative = [value for value in kept if value < 0]
    if sum(counts[value] for value in negative) <= MOST_STRAYS * total and max(kept) > 0:
        kept = kept[len(negative) :] if len(negative) <= 3 else kept
    while len(kept) > 2:
        gaps = [after - before for before, after in pairwise(kept)]
        widest = max(range(len(gaps)), key=gaps.__getitem__)
        low, high = kept[: widest + 1], kept[widest + 1 :]
        many = max(low, high, key=lambda side: sum(counts[value] for value in side))
        if len(many) < 2 or gaps[widest] <= many[-1] - many[0]:
            break
        kept = many
    apart = {value: counts[value] for value in sorted(counts) if value not in set(kept)}
    return apart if sum(apart.values()) <= MOST_STRAYS * total else {}
