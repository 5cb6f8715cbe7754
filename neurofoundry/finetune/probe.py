"""Linear models on the features of a frozen encoder."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from neurofoundry.tasks import Task

PENALTIES = np.logspace(-1, 5, 13)
"""Penalties to choose from, on the squared weights of standardized features."""


def fit(
    features: NDArray[np.float32],
    targets: NDArray[np.float64],
    folds: NDArray[np.int64],
    task: Task,
) -> tuple[nn.Linear, pd.DataFrame]:
    """Fit a penalized linear model of ``features`` (scans, features); return it and its history.

    It is a logistic regression with balanced classes or a ridge regression, of features that are
    standardized with the statistics of these scans. The penalty has the least loss in
    cross-validation over ``folds``: the cross-entropy, or the squared error in the label's unit.
    The standardization is folded into the weights, so that the model takes the features as the
    encoder gives them. The history has one row per penalty.
    """
    pipeline = make_pipeline(StandardScaler(), task.linear_model(balanced=True))
    choices, cv = task.penalties(PENALTIES), PredefinedSplit(folds)
    search = GridSearchCV(pipeline, choices, scoring=task.scoring, cv=cv)
    search.fit(features.astype(np.float64), targets)

    scaler, model = search.best_estimator_
    weight, bias = task.coefficients(model)
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    losses = -search.cv_results_["mean_test_score"]
    return head, pd.DataFrame(
        {
            "penalty": PENALTIES,
            "loss": losses,
            "chosen": np.arange(len(losses)) == search.best_index_,
        }
    )
