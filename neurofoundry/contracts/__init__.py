"""The files between stages: their schemas, readers and writers. Stages share nothing else."""
