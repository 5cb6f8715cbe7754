"""Whether a contrast agent was given: one vocabulary for names of files, protocols and headers.

Clinics name agents, brands and their absence in several languages: 'T1 W/O CONTRAST', 't1 nativ
ohne KM', 'AX T1 C+', 'T1 apres injection', 'acq-mprageGd'.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


_STEMS = (
    r"gado[a-z]*|gadav[a-z]*|gadb[a-z]*|gadt[a-z]*|gadp[a-z]*|gadd|gad|gd(?:dtpa|dota)?|"
    r"gbca|contr?ast[a-z]*|kontras[a-z]*|ferumoxytol|feraheme|"
    r"dotarem|dotagraf|clariscan|magnevist|magnegita|prohance|multihance|omniscan|optimark|"
    r"eovist|primovist|ablavar|vasovist|elucirem|vueway|pixxoscan|artirem|cyclolux"
)
_AGENT = re.compile(
    rf"(?:{_STEMS}|km|ce|dce|mdc|pdc|civ|kmgabe|inj|inject[a-z]*|injek[a-z]*|inyec[a-z]*|iniez[a-z]*|"
    r"injec[a-z]*|enhanced|enhancement|bolus|plusc)"
)
_WITHOUT = _vocabulary(
    "no non not without wo ohne sans sin senza sem zonder utan uden uten bez kein keine keinen "
    "aucun aucune nessun ningun geen ej un pas"
)
_BEFORE = _vocabulary("pre prae pra before avant vor antes prima voor innan prior fore foer przed")
_AFTER = _vocabulary("post after apres nach dopo despues depois efter etter po")
_NATIVE = {"native", "nativ", "nativo", "natif", "nativa", "unenhanced", "nonenhanced", "plain"}
_NEGATION_AFTERWARDS = _vocabulary(
    "none nein nil aucun ninguno nessuno not keines keins neg negative negativ minus"
)
_FILLERS = _vocabulary(
    "iv ev of the any de di del da la le il el l d agent agents medium media material given dye "
    "mittel administration administered gabe mezzo produit medio"
)
_OTHER_EVENT = re.compile(
    r"op|ops|operat[a-z]*|surg[a-z]*|resection|treat[a-z]*|therap[a-z]*|rt|radi[a-z]*|chemo|rx|"
    r"trauma[a-z]*|tbi|covid|stroke|ictal|partum|processing|processed|proc|mortem|training|"
    r"intervention|implant[a-z]*|dbs|biopsy|ect|tms|birth|natal|scan|sleep|task|crash|test|flight"
)
"""What scans come before or after, besides an agent."""
_OTHER_CONTRAST = _vocabulary(
    "high low multi tissue image optimal soft fat dual same wm gm phase normal magnetization "
    "inversion"
)
_NUMBERED = _vocabulary("phase stage type part version study wave visit grade group class")
_NOT_AN_AGENT = _vocabulary(
    "no non none nil n na a not nein nee nej given administered applicable used nothing "
    "unknown unk unspecified false ml cc mg mmol kg oral nacl cl saline glucose dextrose water"
) | (_WITHOUT | _FILLERS | _NATIVE)
_FIELDS = ("ContrastBolusAgent", "ContrastBolusIngredient", "ContrastBolusAgentSequence")
_AMOUNTS = ("ContrastBolusVolume", "ContrastBolusTotalDose")
_NAMES = ("SeriesDescription", "ProtocolName")
FIELDS = (*_FIELDS, *_AMOUNTS, "ContrastBolusRoute", *_NAMES)
"""Attributes of DICOM, and of BIDS sidecars, that tell of an agent."""


def told(fields: Mapping[str, str]) -> bool | None:
    """Return whether an agent was given, by the attributes ``FIELDS``; None where nothing tells.

    A named agent decides, then an amount or a route, then the series, then the protocol, which may
    be that of a whole examination.
    """
    named = [is_agent(fields[name]) for name in _FIELDS if fields.get(name, "").strip()]
    if any(named):
        return True
    if not named and (
        any(_amount(fields.get(name, "")) for name in _AMOUNTS)
        or is_agent(fields.get("ContrastBolusRoute", ""))
    ):
        return True
    by_name = in_names(fields.get(name, "") for name in _NAMES)
    return False if named and by_name is None else by_name


def in_names(names: Iterable[str]) -> bool | None:
    """Return what the first of the ``names`` that tells anything says about an agent."""
    return next((says for name in names if (says := in_name(name)) is not None), None)


def is_agent(value: str) -> bool:
    """Return whether the value of a field for an agent, such as a BIDS ``ce-`` label, names one."""
    words = _words(value)
    if not words or _NUMBER.search(value):
        if not _amount(value):
            return False
        if not words:
            return True
    if words[0] in _WITHOUT | _BEFORE or words[-1] in _NEGATION_AFTERWARDS:
        return False
    return not (set(words) <= _NOT_AN_AGENT and not {"iv", "ev"} & set(words))


def in_name(name: str) -> bool | None:
    """Return whether a name says that an agent was given, or that none was; None for neither."""
    words = _words(name)
    says = [word for place in range(len(words)) if (word := _at(words, place)) is not None]
    return any(says) if says else None


def _at(words: Sequence[str], place: int) -> bool | None:
    """Return what the word at a place says about an agent, seen among its neighbours."""
    word = words[place]
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    if word in _NATIVE:
        return False
    if word in _AFTER | _BEFORE and (_OTHER_EVENT.fullmatch(after) or after in _AFTER | _BEFORE):
        return None
    if word in _BEFORE:
        return False
    if word in _AFTER:
        return before not in _WITHOUT if word == "post" else None
    if word == "iv":
        is_alone = before not in _NUMBERED | _WITHOUT | _FILLERS and not _AGENT.fullmatch(after)
        return True if is_alone and place else None
    if not _AGENT.fullmatch(word):
        return None
    if before in _OTHER_CONTRAST and word.startswith(("cont", "kont", "enhanc")):
        return None
    if after in _NEGATION_AFTERWARDS or (after in _WITHOUT and place + 2 == len(words)):
        return False
    while place and (words[place - 1] in _FILLERS or _AGENT.fullmatch(words[place - 1])):
        place -= 1
    return not place or words[place - 1] not in _WITHOUT | _BEFORE


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case, without accents; compounds are taken apart."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z]|[A-Z]+(?![a-zA-Z]))", " ", text)  # mprageGd, axPOST
    text = unicodedata.normalize("NFKD", text.casefold().translate(_LETTERS))
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    for pattern, spelled in _SPELLINGS:
        text = pattern.sub(spelled, text)
    return re.findall(r"[a-z]+", text)


def _amount(text: str) -> bool:
    """Return whether a text has a number above zero."""
    return any(float(number) > 0 for number in _NUMBER.findall(text))


_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LETTERS = str.maketrans({"ø": "oe", "æ": "ae", "ł": "l"})
"""Letters that are no accented ones."""
_SPELLINGS = [
    (re.compile(unicodedata.normalize("NFKD", pattern)), spelled)
    for pattern, spelled in [
        # Without and with, where words have no Latin letters.
        (
            r"(?:без|до)[\s_]+контраст\w*|非造影|造影(?:前|なし)|単純|平[扫掃]|增[强強]前|조영[\s_]*전",
            " native ",
        ),
        (r"контраст\w*|гадолин\w*|造影[後后]?|增[强強][後后]?|조영", " plusc "),
        # kontrastfrei, contrastless, Kontrastmittelallergie
        (
            rf"(?<![a-z])(?:{_STEMS}|km)(?:mittel)?[\s_-]*(?:(?:los|frei|free|less|fri|loos)(?![a-z])|"
            r"allerg[a-z]*)",
            " native ",
        ),
        (r"(?<![a-z])(multi|pro|omni)[\s_-]+(hance|scan)(?![a-z])", r"\1\2"),
        (r"(?<![a-z0-9])w\s*[/.\\]\s*o(?:ut)?(?![a-z])", " without "),
        (r"(?<![a-z0-9])w[_\s]+o(?![a-z])", " without "),
        (r"(?<![a-z])t1w?", " t1 "),
        (
            r"(?<![a-z])(?:with|w|mit|avec|con|com|met)[\s/&+_-]+(?:(?:and|und|et|y|e|or|en)[\s/&+_-]+)?"
            r"(?:without|wo|ohne|sans|sin|sem|zonder)(?![a-z])",
            " with ",
        ),
        # C+, C (+), +C, +K, and C- for none
        (r"(?<![a-z])(?:c|k|km|gd|ce)\s*\(?\s*\+", " plusc "),
        (r"\+\s*\(?\s*(?:c|k|km|gd|ce|gad)(?![a-z])", " plusc "),
        (r"(?<![a-z])(?:c|k|km|gd|ce|gado?|inj)[\s_]*\(?\s*-(?!\s*[a-z0-9])", " native "),
        (r"(?<![a-z])-\s*c(?=\s*$|\))", " native "),
        # a lone C: T1C, t1_mprage_C; not C-spine or C2
        (
            r"(?<![a-z])(t1 |mprage|vibe|tse|se|spgr|bravo|space|tfe|ffe)([\s_]*)c"
            r"(?![a-z0-9]|[\s_-]*(?:spine|\d))",
            r"\1 plusc ",
        ),
        (r"(pre|post|non)[\s_-]*con(?![a-z])", r"\1 contrast "),
        # precontrast, postgd, noncontrast, nogad, apresinjection, mpragepost
        (
            r"(?<![a-z])(pre|post|pos|non?|without|wo|sans|sin|ohne|un|with|avec|mit|avant|apres|vor|nach|"
            rf"antes|despues|depois|prima|dopo)(?=(?:{_STEMS}|km|(?:inj|inyec|iniez)[a-z]*)(?![a-z]))",
            r"\1 ",
        ),
        (
            rf"([a-z]{{2,}})(?<!t1)(pre|post|gd|gado?|contrast)(?:(?=(?:{_STEMS}))|(?![a-z]))",
            r"\1 \2 ",
        ),
    ]
]
"""Patterns in normalized text, and what they are read as."""
