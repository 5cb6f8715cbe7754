"""How large a run's object becomes on the cluster: Argo keeps the status of every node in it.

Argo keeps 1 MiB of it, compressed, spec included; a run that outgrows that dies, unless the cluster
offloads the status to a database. Measured on Pipelines 2.17.0 with Argo 4.0.5: a run of 100
preprocessing and 40 fine-tuning shards had 10.2 MB of status, 0.90 MB compressed.
"""

from __future__ import annotations

from neurofoundry.errors import UsageError

LIMIT = 2**20
"""Bytes, compressed."""
SPEC = 120_000
"""Bytes of the workflow itself, compressed."""
RATIO = 11
"""Bytes of status to one compressed."""
FIXED = 500_000
"""Bytes of status of all steps outside of loops."""
PATCHES = 6
"""Nodes of a step that repeat the patch of its pod, with its command."""
PREPROCESS_SHARD = 63_000 - PATCHES * 2_900
FINETUNE_SHARD = 85_000 - PATCHES * 3_800
"""Bytes of status of one iteration of a loop, 12 to 14 nodes: as measured, less the parameters,
whose text stood in the patch then and lies in the store now."""
METHOD = 2 * FINETUNE_SHARD
"""Of an iteration with two steps."""


def estimate(*, preprocess_shards: int, finetune_shards: int, methods: int) -> int:
    """Return the bytes of a run's object, compressed."""
    status = FIXED + preprocess_shards * PREPROCESS_SHARD
    status += finetune_shards * FINETUNE_SHARD + methods * METHOD
    return SPEC + status // RATIO


def most_finetune_shards(*, preprocess_shards: int, methods: int) -> int:
    """Return how many shards of fine-tuning fit with half of the limit to spare, at least 1."""
    rest = estimate(preprocess_shards=preprocess_shards, finetune_shards=0, methods=methods)
    return max(1, (LIMIT // 2 - rest) * RATIO // FINETUNE_SHARD)


def check(*, preprocess_shards: int, finetune_shards: int, methods: int) -> None:
    """See that a run fits with half of the limit to spare. Raises UsageError with the numbers."""
    size = estimate(
        preprocess_shards=preprocess_shards, finetune_shards=finetune_shards, methods=methods
    )
    if size > LIMIT // 2:
        raise UsageError(
            f"The run would grow to {size / 1e6:.2f} MB on the cluster ({preprocess_shards} shards "
            f"of preprocessing, {finetune_shards} of fine-tuning, {methods} methods); Argo keeps "
            f"{LIMIT / 1e6:.2f} MB at most, and half of it is the margin here. Give a smaller "
            "--param preprocess_shards or finetune_shards: a shard takes more of the work, and no "
            "more than 8 run at once."
        )
