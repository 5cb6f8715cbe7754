"""What the report says of how the models were made: encoders, parameters, code and machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import neurofoundry
from neurofoundry.contracts.cohort import T1W
from neurofoundry.contracts.encoder import UNTRAINED
from neurofoundry.evaluate.inputs import Inputs, Pretrained
from neurofoundry.evaluate.report.cohort import embed
from neurofoundry.evaluate.report.figures import Figures
from neurofoundry.evaluate.report.narrative import listed
from neurofoundry.evaluate.results import Results
from neurofoundry.runtime.code import code_hash
from neurofoundry.runtime.files import short

SPLIT_BY = {
    "hash": "Persons, not scans, are assigned to the splits by a seeded hash",
    "stratified": "Persons, not scans, are dealt to the splits, balanced over the classes of the "
    "tasks, site, sex and age",
    "published": "Splits are those that the data came with, by person",
    "folds": "Cross-validation by person, balanced over the classes of the tasks, site, sex and "
    "age: each fold in turn is tested, the next one validates, the others train",
}
"""How persons were assigned, by ingest.splits.mode."""


def describe(results: Results, figures: Figures) -> dict[str, Any]:
    """Return what the templates name of how the models were made."""
    inputs = results.inputs
    return {
        "encoders": [_encoder(each, figures) for each in inputs.encoders],
        "provenance": _provenance(inputs, results.seed),
        "declared": _declared(inputs),
        "initializations": initializations(inputs),
    }


def initializations(inputs: Inputs) -> dict[str, str]:
    """Return what each initialization is, in words, from the parameters of finetune."""
    try:
        declared = inputs.records["finetune"]["params"]["finetune"]["initializations"]
        modes = {"finetune": "whole network trained", "probe": "frozen, linear model on top"}
        return {
            name: "; ".join([_origin(start["encoder"]), modes[start["mode"]], *_tuned(start)])
            for name, start in declared.items()
        }
    except (KeyError, TypeError, AttributeError):
        return {}


def _origin(encoder: str) -> str:
    return "not pretrained" if encoder in UNTRAINED else f"pretrained ({encoder})"


def _tuned(start: Mapping[str, Any]) -> list[str]:
    """Return in which ways an initialization is fine-tuned unlike the others."""
    own = ("learning_rate", "layer_decay", "epochs", "freeze", "head")
    return [f"{key} {start[key]}" for key in own if start.get(key) not in (None, 0, "zeros")]


def _declared(inputs: Inputs) -> dict[str, Any]:
    """Return the parameters of earlier stages that the checklist states, as far as they are
    recorded.

    Chosen by name: others can hold a path.
    """
    dealt, learning = _section(inputs, "ingest").get("splits", {}), _section(inputs, "finetune")
    contrasts = _section(inputs, "ingest").get("contrasts") or [T1W]
    return {
        "contrasts": "T1-weighted" if contrasts == [T1W] else listed(contrasts, "and"),
        "spacing": _section(inputs, "preprocess").get("grid", {}).get("spacing", 1.0),
        "split_by": SPLIT_BY.get(dealt.get("mode", "hash"), ""),
        "splits": _chosen(dealt, *("pretrain", "train", "val", "test", "folds", "repeats")),
        "preprocess": _chosen(
            *(_section(inputs, "preprocess"), "registration", "bias_correction", "normalization")
        ),
        "training": _chosen(
            learning,
            *("epochs", "batch_size", "learning_rate", "weight_decay", "layer_decay"),
            *("augmentation", "precision", "fractions", "seeds"),
        ),
        "explain": _chosen(learning.get("explain") or {}, "steps", "scans"),
    }


def _section(inputs: Inputs, stage: str) -> Mapping[str, Any]:
    return (inputs.records.get(stage, {}).get("params") or {}).get(stage) or {}


def _chosen(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: values[key] for key in keys if values.get(key) is not None}


def _encoder(encoder: Pretrained, figures: Figures) -> dict[str, Any]:
    """Return what the page shows of an encoder and how it was pretrained."""
    history, views = encoder.history, encoder.folder / "views.png"
    first, last = (history.iloc[[0, -1]].to_dict("records")) if len(history) else ({}, {})
    return {
        "name": encoder.name,
        "persons": None if encoder.seen.persons is None else len(encoder.seen.persons),
        "views": embed(views, width=960) if views.exists() else None,
        "svg": figures.pretraining.get(encoder.name),
        "epochs": len(history),
        "first": first.get("loss"),
        "last": last.get("loss"),
        "rank": last.get("effective_rank"),
        "architecture": encoder.plan.encoder.architecture,
        "method": encoder.plan.method,
        "licence": encoder.plan.licence,
    }


def _provenance(inputs: Inputs, seed: int) -> dict[str, Any]:
    versions = [str(record.get("data_version", "")) for record in inputs.records.values()]
    return {
        "stages": [_stage(name, record) for name, record in inputs.records.items()],
        "data_version": next((version[:16] for version in versions if version), "unknown"),
        "version": neurofoundry.__version__,
        "code": short(code_hash("neurofoundry.evaluate.run")),
        "seed": seed,
    }


def _stage(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stage": name,
        "version": record.get("package_version", ""),
        "code": short(str(record.get("code_sha256", ""))),
        "libraries": record.get("libraries", {}),
    }
