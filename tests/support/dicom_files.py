"""Writes small DICOM series, with headers such as clinics have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tests.support.building import head

MPRAGE = {
    "ScanningSequence": ["GR", "IR"],
    "MRAcquisitionType": "3D",
    "RepetitionTime": 2300.0,
    "EchoTime": 2.98,
    "InversionTime": 900.0,
    "FlipAngle": 9.0,
    "SeriesDescription": "t1_mprage_sag MUELLER",
}
T2 = {
    "ScanningSequence": ["SE"],
    "MRAcquisitionType": "2D",
    "RepetitionTime": 5000.0,
    "EchoTime": 95.0,
    "FlipAngle": 150.0,
    "SeriesDescription": "t2_tse",
}
LOCALIZER = {
    "ScanningSequence": ["GR"],
    "RepetitionTime": 8.6,
    "EchoTime": 4.0,
    "FlipAngle": 20.0,
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM", "LOCALIZER"],
}
PERSON = {
    "PatientName": "MUELLER^HANS^PETER",
    "PatientID": "PID-4711-XYZ",
    "PatientBirthDate": "19530204",
    "PatientSex": "M",
    "PatientAge": "065Y",
    "StudyDate": "20181119",
    "StudyTime": "134501",
    "AccessionNumber": "ACC-998877",
    "InstitutionName": "Klinikum Entenhausen",
    "ReferringPhysicianName": "DUCK^DONALD",
    "OperatorsName": "MOUSE^MICKEY",
    "PatientComments": "fell off the bridge",
    "StudyDescription": "Schaedel nativ",
    "DeviceSerialNumber": "SN-31337",
}

IDENTIFYING = [
    "mueller", "hans", "peter", "4711", "19530204", "1953", "20181119", "20200301", "134501",
    "998877",
    "entenhausen", "klinikum", "duck", "mickey", "bridge", "schaedel", "31337", "mprage", "1.2.826",
]  # fmt: skip
"""Words of the headers and folders of `hospital` that no output may show."""


def write_series(
    folder: Path,
    tags: dict[str, Any],
    *,
    number: int = 1,
    study: str = "1",
    slices: int = 40,
    seed: int = 0,
    person: dict[str, Any] | None = None,
    skip: Sequence[int] = (),
    thickness: float = 4.5,
) -> list[Path]:
    """Write a series of axial slices, 40 × 40 pixels of 4.5 mm."""
    folder.mkdir(parents=True, exist_ok=True)
    who = {**PERSON, **(person or {})}
    study_uid = f"1.2.826.0.1.3680043.2.{sum(map(ord, who['PatientID'] + study))}"
    series_uid = f"{study_uid}.{number}"
    voxels = head(seed)
    written = []
    for index in set(range(slices)) - set(skip):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series_uid}.{index + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = generate_uid()
        file = folder / f"IM{number:03d}{index:04d}"
        content = FileDataset(str(file), {}, file_meta=meta, preamble=bytes(128))
        values = {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "Modality": "MR",
            "Manufacturer": "SIEMENS",
            "ManufacturerModelName": "Skyra",
            "MagneticFieldStrength": 3.0,
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
            "StudyInstanceUID": study_uid,
            "SeriesInstanceUID": series_uid,
            "SeriesNumber": number,
            "InstanceNumber": index + 1,
            "AcquisitionNumber": 1,
            "FrameOfReferenceUID": study_uid + ".9",
            "PixelSpacing": [4.5, 4.5],
            "SliceThickness": thickness,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-90, -90, -90 + thickness * index],
            "Rows": 40,
            "Columns": 40,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            **who,
            **tags,
        }
        for name, value in values.items():
            setattr(content, name, value)
        content.PixelData = np.ascontiguousarray(voxels[:, ::-1, index % 40].T).tobytes()
        content.save_as(file, enforce_file_format=True)
        written.append(file)
    return written


def hospital(data: Path) -> Path:
    """Two persons, one of them twice, in folders named after them, as hospitals do."""
    first = data / "MUELLER_HANS" / "20181119"
    write_series(first / "a", LOCALIZER, number=1, slices=3)
    write_series(first / "a", T2, number=2, seed=1)
    write_series(first / "a", MPRAGE, number=3, seed=2)
    later = {"StudyDate": "20200301", "PatientAge": "067Y"}
    write_series(data / "MUELLER_HANS" / "0first", MPRAGE, study="2", seed=3, person=later)
    other = {"PatientID": "PID-2", "PatientSex": "F", "PatientAge": "", "PatientName": "PETER"}
    write_series(data / "x", MPRAGE, seed=4, person=other)
    (data / "MUELLER_HANS" / "letter.txt").write_text("Dear Hans")
    return data
