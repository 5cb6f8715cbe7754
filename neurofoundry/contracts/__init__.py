"""The files between stages: schemas, readers and writers. Stages meet only here."""
