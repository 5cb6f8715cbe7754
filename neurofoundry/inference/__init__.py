"""From raw scans to embeddings and predictions, with weights that are there already."""
