"""What an evaluation leaves for other programs: metrics.json, promotion.json, tables, plots,
predictions and maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from neurofoundry.contracts.evaluation import write_decision, write_headline, write_metrics
from neurofoundry.contracts.tables import write_table
from neurofoundry.evaluate import predictions
from neurofoundry.evaluate.inputs import Inputs
from neurofoundry.evaluate.measure import explanations
from neurofoundry.evaluate.report import headline
from neurofoundry.evaluate.results import Results
from neurofoundry.runtime.files import write_json


def write(folder: Path, results: Results) -> None:
    """Write all of it into ``folder``."""
    for name, table in _tables(results).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_table(table, folder / name)
    for evidence in results.tasks:
        predictions.write(folder / "predictions", evidence)
    explanations.write(folder / "explanations", results.explained)
    write_json(folder / "provenance.json", results.inputs.provenance())
    write_decision(folder, results.decision)
    write_metrics(folder, metrics(results))
    write_headline(folder, headline.primary(results))


def _tables(results: Results) -> dict[str, pd.DataFrame]:
    """Return every table by its path."""
    return {
        "tables/metrics.tsv": results.measured.measures,
        "tables/differences.tsv": results.measured.differences,
        "tables/gaps.tsv": results.measured.gaps,
        "tables/calibration.tsv": results.calibrated,
        "tables/shots.tsv": results.shots,
        "tables/decisions.tsv": results.decisions,
        "tables/benefit.tsv": results.benefit,
        "tables/sets.tsv": results.sets,
        "tables/confusion.tsv": results.curves.confusion,
        "tables/subgroups.tsv": results.subgroups,
        "tables/fairness.tsv": results.fairness,
        "tables/brain_age.tsv": results.brain_age,
        "tables/repeats.tsv": results.repeats,
        "tables/sites.tsv": results.sites,
        "tables/harmonization.tsv": results.harmonization,
        "tables/embeddings.tsv": results.recognized,
        "tables/explanations.tsv": explanations.table(results.explained),
        "plots/roc.tsv": results.curves.roc,
        "plots/roc_bands.tsv": results.curves.bands,
        "plots/reliability.tsv": results.curves.reliability,
        "plots/predicted_vs_true.tsv": results.curves.predicted,
        "plots/pretraining.tsv": _histories(results.inputs),
    }


def _histories(inputs: Inputs) -> pd.DataFrame:
    """Return how each encoder was pretrained, one row an epoch."""
    tables = [each.history.assign(encoder=each.name) for each in inputs.encoders]
    return pd.concat(tables, ignore_index=True)


def metrics(results: Results) -> dict[str, Any]:
    """Return the content of metrics.json: task, initialization, fraction, split and metric, nested
    in this order."""
    content: dict[str, Any] = {}
    table = results.measured.measures
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        split = content.setdefault(row["task"], {}).setdefault(row["init"], {})
        split = split.setdefault(str(row["fraction"]), {}).setdefault(row["split"], {})
        split |= {"subjects": row["subjects"], "scans": row["scans"]}
        score = {name: row[name] for name in ("value", "low", "high")}
        score |= {name: row[name] for name in ("seed_sd", "reason") if row[name] is not None}
        split[row["metric"]] = score
    return content
