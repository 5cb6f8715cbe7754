"""Finds the label, or the column, that is meant where a table spells it in a way of its own.

Spreadsheets turn 01 into 1 or 1.0, people write Sub-01, and BIDS drops the signs of 002_S_0413. A
label is matched only where nothing else could be meant.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

_ID = r" ?(?:id|label|code|name|number|no|nr|key|nummer)?"
_SUBJECT = (
    r"(?:the |src )?(?:subjects?|subj|sub|participants?|patient(?:s|en)?|pat|person|"
    rf"proband(?:en)?|sujeto?|paciente|paziente){_ID}|"
    r"record ?id|usubjid|ptid|rid|eid|mrn|pscid|candid|ixi ?id"
)
"""With what REDCap, CDISC, ADNI, UK Biobank, hospitals, LORIS and IXI call it."""
_SESSION = (
    rf"(?:mri? |scan ?)?(?:sessions?|sess?|visits?|time ?points?|waves?){_ID}|"
    r"viscode2?|redcap event name"
)
_IMAGE = r"(?:image|scan|nifti|nii|file|full|t1w?|mri)? ?(?:path|file ?name|file|location)s?"
_MEANT = {
    "participant_id": re.compile(_SUBJECT + "|id"),
    "subject": re.compile(_SUBJECT),
    "session_id": re.compile(_SESSION),
    "session": re.compile(_SESSION),
    "path": re.compile(_IMAGE),
    "age": re.compile(r"(?:.* )?ages?(?: .*|yrs?|years?|y|months?)?|.*age (?:at|in|of) .*"),
    "sex": re.compile(r"(?:.* )?(?:sex|gender|geschlecht|sexe|sexo|sesso)(?: .*)?"),
}
"""Other names that people give to columns, in words."""


_LONG = 5
"""Letters; a shorter word is a letter away from too many others, as age is from page."""


def meant(name: str, columns: Iterable[str]) -> str | None:
    """Return the first of the ``columns`` that is most likely called ``name`` by mistake, or None.

    >>> meant("participant_id", ["age", "Subject ID"])
    'Subject ID'
    >>> meant("diagnosis", ["diagnosys", "age"])
    'diagnosys'
    """
    spelled = {_words(column): column for column in reversed(list(columns))}
    pattern = _MEANT.get(name)
    for words, column in reversed(spelled.items()):
        if words == _words(name) or (pattern and pattern.fullmatch(words)):
            return column
    if len(name) < _LONG:
        return None
    close = difflib.get_close_matches(_words(name), spelled, n=1, cutoff=0.85)
    return spelled[close[0]] if close else None


def meaning(label: str, prefix: str) -> str:
    """Return a label without its prefix, case, padding, and signs beside letters."""
    text = unicodedata.normalize("NFC", label).casefold().strip()
    text = re.sub(rf"^(?:{prefix.rstrip('-')}[\W_]*)+(?=\w)", "", text).removesuffix(".0")
    text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    return re.sub(r"(?<=[^\W\d_])[\W_]+|[\W_]+(?=[^\W\d_])", "", text)


def match(labels: Sequence[str], keys: Collection[str], prefix: str) -> dict[str, str]:
    """Return the key of each of the ``labels`` that has one: its own, or one that means the same.

    ``prefix`` is 'sub-' or 'ses-', with or without which both may be written.

    >>> match(["sub-01", "sub-02", "sub-2"], ["1.0", "2"], "sub-")
    {'sub-2': '2', 'sub-01': '1.0'}
    """
    own = {key if key.startswith(prefix) else prefix + key: key for key in keys}
    matched = {label: own[label] for label in labels if label in own}
    taken = set(matched.values())
    left = _by_meaning((key for key in keys if key not in taken), prefix)
    meanings = _by_meaning(labels, prefix)
    for label in labels:
        alike = left.get(meaning(label, prefix), [])
        if label not in matched and len(alike) == 1 == len(meanings[meaning(label, prefix)]):
            matched[label] = alike[0]
    return matched


def _by_meaning(labels: Iterable[str], prefix: str) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for label in labels:
        grouped.setdefault(meaning(label, prefix), []).append(label)
    return grouped


def _words(name: str) -> str:
    """Return the words of a name in lower case: 'SubjectID' and 'subject_id' are 'subject id'."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"[^\W_]+", parted.casefold()))
