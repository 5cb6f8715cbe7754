"""From raw scans to embeddings and predictions, with existing weights."""
