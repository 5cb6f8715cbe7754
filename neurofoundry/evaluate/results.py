"""Everything that an evaluation has read and measured: what its tables, its report and the tracker
show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.evaluation import Decision
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.evaluate import champion, promotion
from neurofoundry.evaluate.evidence import Evidence, read_evidence
from neurofoundry.evaluate.inputs import Features, Inputs, read_features
from neurofoundry.evaluate.measure import (
    baselines,
    benefit,
    brain_age,
    calibration,
    curves,
    decisions,
    embeddings,
    explanations,
    fairness,
    harmonization,
    performance,
    robustness,
    sets,
    shots,
    subgroups,
)
from neurofoundry.evaluate.measure.curves import Curves
from neurofoundry.evaluate.measure.explanations import Explanation
from neurofoundry.evaluate.measure.performance import Measured
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.tasks import Task


@dataclass(frozen=True, eq=False)
class Results:
    """An evaluation, before anything of it is written."""

    inputs: Inputs
    volumes: Volumes
    tasks: tuple[Evidence, ...]
    """Of every declared task the scans, the models and the baselines."""
    features: Mapping[str, Features]
    """Of every encoder, for held-out scans."""
    explained: tuple[Explanation, ...]
    params: EvaluateParams
    seed: int

    measured: Measured
    shots: pd.DataFrame
    """shots.SHOTS."""
    decisions: pd.DataFrame
    """decisions.DECISIONS."""
    benefit: pd.DataFrame
    """benefit.BENEFIT."""
    useful: pd.DataFrame
    """benefit.USEFUL."""
    sets: pd.DataFrame
    """sets.SETS."""
    calibrated: pd.DataFrame
    """calibration.CALIBRATION."""
    subgroups: pd.DataFrame
    """subgroups.SUBGROUPS."""
    fairness: pd.DataFrame
    """fairness.FAIRNESS."""
    brain_age: pd.DataFrame
    """brain_age.BRAIN_AGE."""
    curves: Curves
    repeats: pd.DataFrame
    """robustness.REPEATS."""
    sites: pd.DataFrame
    """robustness.SITES."""
    harmonization: pd.DataFrame
    """harmonization.HARMONIZATION."""
    recognized: pd.DataFrame
    """embeddings.EMBEDDINGS."""
    decision: Decision


def measure(
    inputs: Inputs,
    volumes: Volumes,
    models: Path,
    *,
    tasks: Mapping[str, Task],
    params: EvaluateParams,
    seed: int,
) -> Results:
    """Read the predictions, add the baselines, and measure all. Raises DataError."""
    of_models = [read_evidence(name, task, inputs, models) for name, task in tasks.items()]
    evidence = baselines.add(of_models, inputs, volumes)
    known = read_features(models)
    learned_from = inputs.scans["scan_id"][~inputs.scans["split"].isin(HELD_OUT)]
    features = {name: each.without(learned_from) for name, each in known.items()}
    explained = explanations.read(evidence, models)
    measured = performance.measure(evidence, params=params, seed=seed)
    sites = robustness.sites(features, inputs, tasks)
    groups = subgroups.measure(evidence, params=params)
    curve, useful = benefit.measure(evidence, params=params)
    return Results(
        inputs=inputs,
        volumes=volumes,
        tasks=evidence,
        features=features,
        explained=explained,
        params=params,
        seed=seed,
        measured=measured,
        shots=shots.measure(evidence, known, inputs, params=params, seed=seed),
        decisions=decisions.measure(evidence, measured, params=params),
        calibrated=calibration.measure(evidence, params=params, seed=seed),
        benefit=curve,
        useful=useful,
        sets=sets.measure(evidence, params=params),
        subgroups=groups,
        fairness=fairness.measure(evidence, groups),
        brain_age=brain_age.measure(evidence, inputs, params=params),
        curves=curves.measure(evidence, params=params, seed=seed),
        repeats=robustness.repeats(evidence, params=params),
        sites=sites,
        harmonization=harmonization.measure(known, evidence, inputs, params=params, seed=seed),
        recognized=embeddings.measure(features, inputs, params=params),
        decision=_decide(params, evidence, measured, sites, inputs, seed=seed),
    )


def _decide(
    params: EvaluateParams,
    tasks: tuple[Evidence, ...],
    measured: Measured,
    sites: pd.DataFrame,
    inputs: Inputs,
    *,
    seed: int,
) -> Decision:
    rule = params.promotion
    of_task = next((each for each in tasks if rule and each.name == rule.task), None)
    judged = None
    if rule and rule.champion and of_task:
        judged = champion.judge(rule, rule.champion, of_task, params=params, seed=seed)
    return promotion.decide(
        rule,
        measured,
        of_task.fraction if of_task else 1.0,
        champion=judged,
        sites=sites,
        encoder=inputs.starts_from(rule.initialization) if rule else None,
    )
