"""The five stages as one Kubeflow pipeline: compile it, run it here, submit it to a cluster."""
