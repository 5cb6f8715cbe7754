"""Which texts of a header or sidecar may be written: known technical terms, and nothing else.

Any attribute may hold a name, by mistake or because a clinic uses it so. What is not a term of this
vocabulary is 'another value' in every output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ANOTHER = "another value"


def _vocabulary(words: str) -> dict[str, str]:
    return {word.casefold(): word for word in words.split()}


_SCANNERS = _vocabulary("""
    SIEMENS Healthineers MAGNETOM Aera Allegra Altea Amira Avanto Biograph Biograph_mMR BioMatrix
    Cima.X Concerto Connectom Espree Essenza Free.Max Free.Star Investigational_Device_7T Lumina mMR
    Prisma Prisma_fit Sempra Skyra Skyra_fit Sola Sonata SonataVision Spectra Symphony SymphonyTim
    Terra Terra.X Trio TrioTim Verio Vida Viato.Mobile fit
    GE MEDICAL SYSTEMS HEALTHCARE SIGNA Architect Artist Creator Discovery EXCITE GENESIS
    GENESIS_SIGNA HDe HDi HDx HDxt HERO LX MR355 MR360 MR450 MR450w MR750 MR750w Optima Pioneer
    Premier UHP Voyager
    Philips Achieva dStream Ambition Elition Evolution Gyroscan Ingenia Ingenuity Intera Multiva
    Panorama Prodiva HFO
    TOSHIBA Toshiba_MEC CANON Titan Vantage Elan Excelart Fortian Galan Orian
    HITACHI FUJIFILM AIRIS Aperto Altaire ECHELON OASIS
    Bruker Esaote Hyperfine Swoop UIH uMR
    Synthetic Imaging Phantom Alder Birch Imaginary Magnets Cedar Dogwood 1.5 3
    0.2T 0.3T 0.4T 1T 1.0T 1.2T 1.5T 3T 3.0T 5T 7T 9.4T 10.5T 11.7T
""")
_SEQUENCES = frozenset({"SE", "IR", "GR", "EP", "RM"})
"""The defined terms of ScanningSequence."""


def scanner(text: str) -> str:
    """Return a manufacturer and model, as far as their words are known.

    >>> scanner("SIEMENS Prisma_fit")
    'SIEMENS Prisma_fit'
    >>> scanner("GE MEDICAL SYSTEMS Dr Meier's SIGNA")
    'GE MEDICAL SYSTEMS SIGNA'
    >>> scanner("Meier")
    'another value'
    """
    words = [_SCANNERS[word] for word in text.casefold().split() if word in _SCANNERS]
    return " ".join(words) if words or not text.strip() else ANOTHER


def sequence(codes: Iterable[str]) -> str:
    """Return the codes of a scanning sequence."""
    known = {code if code in _SEQUENCES else ANOTHER for code in codes}
    return "/".join(sorted(known)) or "unknown sequence"


def number(value: float, most: float) -> str:
    """Return a number that can be what it should be; a date or a patient number can not."""
    return f"{value:g}" if 0 <= value <= most else ANOTHER


def suffix(name: str) -> str:
    """Return the suffix of a file name, '' where it has none: what follows a dot may be a name."""
    known = (
        r"\.(?:nii|nii\.gz|dcm|ima|tsv|csv|json|txt|xlsx?|pdf|zip|tar|gz|tgz|mgz|mgh|hdr|img|mnc|nrrd|"
        "mha)"
    )
    match = re.search(rf"{known}$", name, re.IGNORECASE)
    return match[0].lower() if match else ("other" if "." in name else "")
