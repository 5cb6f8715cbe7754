"""One Kubeflow component a stage: the command of dvc.yaml, in a container.

Bulk data stays in the store, a volume that every step mounts (neurofoundry/runtime/store.py). Steps
exchange manifests, small files that say where in the store an output lies, and what they tell
Kubeflow goes through the executor output (neurofoundry/kubeflow/executor.py).
"""
