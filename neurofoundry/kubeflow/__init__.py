"""What only a cluster needs."""
