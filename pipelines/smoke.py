"""A tiny pipeline that tries a new cluster: minutes now, instead of hours lost later."""

from collections.abc import Mapping

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.check import check
from neurofoundry.kubeflow.schemas import Pool
from pipelines import node_pools
from pipelines.node_pools import MOUNT, Site


def build(pools: Mapping[str, Pool], *, wandb_secret: str = "wandb") -> GraphComponent:
    """A step on each pool: does the image come, is the volume shared, are the GPUs there?"""

    @dsl.pipeline(name="neurofoundry-smoke", description="Is this cluster ready?")
    def smoke(image: str, store: str = MOUNT, claim: str = "neurofoundry") -> None:
        """The check.

        Args:
            image: The container image, by digest.
            store: Where the volume is mounted.
            claim: The persistent volume claim.
        """
        site = Site(image, claim, wandb_secret)
        before = None
        for role, pool in pools.items():
            count = pool.accelerator.count if pool.accelerator else 0
            task = node_pools.place(
                check(store=store, gpus=str(count)),
                role,
                pool,
                site,
                selector=pool.selector,
                tolerations=node_pools.plain(pool),
                accelerators=str(count) if count else None,
            )
            task.set_caching_options(False)
            if before is not None:
                task.after(before)  # each finds in the store what the one before it left
            before = task

    return smoke
