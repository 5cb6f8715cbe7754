"""Evaluate: measure the models in and out of distribution, and say in words what was found."""
