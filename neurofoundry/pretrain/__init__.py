"""Contrastive pretraining of an encoder on unlabelled scans (SimCLR)."""
