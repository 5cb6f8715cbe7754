"""What every stage shares and no result depends on: outputs, caches, resume, tracking."""
