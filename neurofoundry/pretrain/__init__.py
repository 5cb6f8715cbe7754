"""Pretraining of an encoder on unlabelled scans: by contrast (SimCLR), by what is hidden (MAE)."""
