"""Reads ages in the units and spellings that tables have; what is not understood is no number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PER_YEAR = {"year": 1.0, "month": 12.0, "week": 365.25 / 7, "day": 365.25}
_WORDS = {
    "year": r"y|yr|yrs|years?|jahre?n?|ans?|annees?|anos?|años?|anni|jaar|a",
    "month": r"m|mo|mos|mon|mth|mths|months?|monate?n?|mois|mes|meses|mesi|maand(?:en)?",
    "week": r"w|wk|wks|weeks?|wochen?|semaines?|semanas?|settimane|weken",
    "day": r"d|days?|tage?n?|jours?|dias?|giorni|dagen",
}
_UNIT = re.compile("|".join(f"(?P<{unit}>{words})" for unit, words in _WORDS.items()))
_AGE = re.compile(r"(-?\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)\s*\+?\s*([^\W\d_]*)\.?\s*(?:old)?\s*\+?")
_BEFORE_BIRTH = re.compile(r"gestation|gestac|menstrual|conception|konzeption")
"""Ages that are not counted from birth."""
_DERIVED = re.compile(
    r"z[\s_-]?scor|standardi[sz]ed|normali[sz]ed|demeaned|mean[\s_-]?cent(?:er|re)d|decades?\b|decile|quartile|"
    r"percentile|age[\s_-]?(?:groups?|bins?|bands?|categor)|\blog\b|squared"
)
"""Numbers that are made of ages and are none."""
_SPAN = re.compile(
    r"\d+\s*(?:-|–|to|bis|through)\s*\d+|[<>≥≤]\s*\d+|\d+\s*(?:\+|and (?:over|older))"
)
"""What stands for a code that means a range of ages."""
_NOTHING = {"", "n/a", "na", "none", "null"}


def unit(text: str) -> str | None:
    """Return the unit that a description is about: its first word that is one, or None.

    'years (rounded to the nearest month)' is in years; 'weeks of gestation' in nothing known.
    """
    if _BEFORE_BIRTH.search(text.casefold()):
        return None
    for word in re.findall(r"[^\W\d_]+", text.casefold()):
        if match := _UNIT.fullmatch(word):
            return match.lastgroup
    return None


def is_unit(text: str) -> bool:
    """Return whether a cell is the name of a unit, such as [months], and nothing else."""
    word = text.strip(" ()[].").casefold()
    return len(word) > 1 and _UNIT.fullmatch(word) is not None


def declared_unit(column: str, described: Any) -> tuple[str | None, str]:
    """Return the unit of a column of a data dictionary, and the words that say so.

    `Units` decides; without it a description ('age in months') or the name of the column may. The
    unit is None where `Units` is not understood; without any words it is 'year'.
    """
    entry = described if isinstance(described, Mapping) else {}
    entry = {str(key).casefold(): value for key, value in entry.items()}
    units = entry.get("units", entry.get("unit"))
    said = " ".join(map(str, units)) if isinstance(units, list) else str(units or "")
    if said.strip().casefold() not in _NOTHING:
        return unit(said), said
    description = " ".join(str(entry.get(name) or "") for name in ("longname", "description"))
    levels = entry.get("levels")
    means = map(str, levels.values()) if isinstance(levels, Mapping) else ()
    # One code may stand for all above 89.
    groups = sum(bool(_SPAN.search(each.casefold())) for each in means)
    if _DERIVED.search(description.casefold()) or groups > 1:
        return None, "groups or scores"
    if _BEFORE_BIRTH.search(description.casefold()):
        return None, "an age from before birth"
    match = re.search(r"(?:\bin |\()(\w{3,})", description.casefold())
    if match and (found := unit(match[1])):
        return found, match[1]
    named = named_unit(column)
    return (named, column) if named else ("year", "")


def named_unit(column: str) -> str | None:
    """Return the unit that the name of a column says, if it does: age_months, Age [mo], not
    age_at_day_1 or age_a."""
    folded = column.casefold().strip()
    if match := re.search(r"[(\[]\s*([^\W\d_]+)\.?\s*[)\]]$", folded):
        return unit(match[1])
    last = re.split(r"[\W_]+", folded)[-1]
    return unit(last) if last.endswith("s") or last == "mo" else None


def has_no_unit(text: str) -> bool:
    """Return whether an age is a number alone."""
    match = _AGE.fullmatch(text.strip().casefold())
    return match is not None and not match[2]


def with_unit(text: str, unit: str) -> str:
    """Return an age with the unit that it is in, where it has none of its own."""
    return f"{text.strip().rstrip('+')} {unit}" if has_no_unit(text) else text


def in_years(text: str, default: str = "year") -> float | None:
    """Return an age in years from cells such as 45, 45,5, 90+, 045Y or 18 months; else None.

    ``default`` is the unit of a number without one.
    """
    match = _AGE.fullmatch(text.strip().casefold())
    if not match:
        return None
    own = unit(match[2]) if match[2] else default
    if own is None:
        return None
    age = float(match[1].replace(",", "."))
    return age if own == "year" else round(age / _PER_YEAR[own], 2)
