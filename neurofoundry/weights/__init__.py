"""Weights in and out: checkpoints of others, folders for others, and features in three lines."""
