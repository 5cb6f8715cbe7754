"""Metrics, intervals and comparisons of models, by person."""
