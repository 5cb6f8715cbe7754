"""Raw scans to an evaluated model: the five stages, fanned out over the pools of a cluster."""

from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.graph_component import GraphComponent

from components.configure import configure
from components.evaluate import evaluate
from components.fetch import fetch
from components.finetune import finetune, finetune_shard
from components.ingest import ingest
from components.preprocess import preprocess, preprocess_shard
from components.pretrain import pretrain, pretrain_on_nodes
from components.promote import promote
from components.summarize import summarize
from neurofoundry.kubeflow.schemas import Pool
from pipelines import node_pools
from pipelines.node_pools import MOUNT, Site

PARALLEL = 8
"""Steps of a loop that run at the same time; more wait."""

DVC_SECRET = "dvc"
DVC_CONFIG = "/etc/xdg/dvc"
"""Where DVC looks for the configuration of a site: keys of remotes, from an optional secret."""

RETRIES = {
    "num_retries": 3,
    "backoff_duration": "60s",
    "backoff_factor": 2,
    "backoff_max_duration": "900s",
}
"""A step that is retried goes on where it was; a node that was taken away costs minutes."""


def build(pools: Mapping[str, Pool], *, wandb_secret: str = "wandb") -> GraphComponent:
    """The pipeline for the machines of a cluster.

    ``wandb_secret`` is the name of a Kubernetes secret with the key ``api-key``; without it runs
    are recorded offline, in the store.
    """
    cpu, gpu = pools["cpu"], pools["gpu"]
    count = gpu.accelerator.count if gpu.accelerator else 0
    tolerations = {role: node_pools.plain(pool) for role, pool in pools.items()}
    several_nodes = _build_several_nodes(pools, wandb_secret)

    @dsl.pipeline(
        name="neurofoundry",
        description="From raw 3D brain MRI to a pretrained, fine-tuned and evaluated model.",
        display_name="neurofoundry",
    )
    def neurofoundry(
        params: str,
        image: str,
        data_version: str = "",
        data_repository: str = "",
        data_revision: str = "",
        store: str = MOUNT,
        claim: str = "neurofoundry",
        preprocess_shards: int = 4,
        finetune_shards: int = 0,
        nodes: int = 1,
        gpus: str = str(count),
        cpu_selector: dict[str, str] = cpu.selector,
        cpu_tolerations: list[dict[str, str]] = tolerations["cpu"],
        gpu_selector: dict[str, str] = gpu.selector,
        gpu_tolerations: list[dict[str, str]] = tolerations["gpu"],
    ) -> None:
        """The pipeline.

        Args:
            params: The text of params.yaml.
            image: The container image, by digest.
            data_version: Folder of the raw data in STORE/data, named by its version (the md5 in
                data.dvc): other data is another name, so nothing stale is taken from the cache.
            data_repository: Git repository whose data.dvc names the data, if it may have to be
                fetched from its DVC remote.
            data_revision: Commit, tag or branch of the repository; where data_version is given,
                it must have exactly that.
            store: Where the volume is mounted.
            claim: The persistent volume claim, to be mounted by several nodes at once.
            preprocess_shards: Steps that share the scans.
            finetune_shards: Steps that share the models to make; 0 is a step for each, and one for
                all probes of an encoder.
            nodes: Machines that pretrain together; more than one need Kubeflow Trainer.
            gpus: GPUs of each that pretrain together; a text, as a number would be ignored.
            cpu_selector: Labels of the nodes for CPU steps.
            cpu_tolerations: Taints that CPU steps accept.
            gpu_selector: Labels of the nodes for GPU steps.
            gpu_tolerations: Taints that GPU steps accept.
        """

        on = _placing(
            pools,
            Site(image, claim, wandb_secret),
            cpu=(cpu_selector, cpu_tolerations),
            gpu=(gpu_selector, gpu_tolerations),
        )
        ended = on(summarize(store=store), "light", "summarize")
        with dsl.ExitHandler(exit_task=ended, name="all stages"):
            checked = on(
                configure(
                    params=params,
                    preprocess_shards=preprocess_shards,
                    finetune_shards=finetune_shards,
                ),
                "light",
                "configure",
            )
            of = checked.outputs
            fetched = on(
                fetch(
                    version=data_version,
                    repository=data_repository,
                    revision=data_revision,
                    store=store,
                ),
                "light",
                "fetch",
                hours=cpu.hours,
            )
            # A branch may have moved, and a folder may have been deleted: never from the cache.
            fetched.set_caching_options(False).after(checked)
            kubernetes.use_secret_as_volume(fetched, DVC_SECRET, DVC_CONFIG, optional=True)
            fetched.set_env_variable("GIT_CONFIG_GLOBAL", f"{DVC_CONFIG}/gitconfig")
            data = fetched.outputs["folder"]
            cohort = on(ingest(params=of["ingest"], data=data, store=store), "cpu", "ingest")
            cohort = cohort.outputs["cohort"]

            with dsl.ParallelFor(
                of["shards_of_preprocess"], name="preprocess shards", parallelism=PARALLEL
            ) as shard:
                scans = preprocess_shard(
                    params=of["preprocess"], data=data, shard=shard, store=store, cohort=cohort
                )
                on(scans, "cpu", "preprocess a shard")
            whole = preprocess(
                params=of["preprocess"],
                data=data,
                shards=dsl.Collected(scans.outputs["folder"]),
                store=store,
                cohort=cohort,
            )
            volumes = on(whole, "cpu", "preprocess").outputs["volumes"]

            with dsl.ParallelFor(
                of["methods"], name="pretraining methods", parallelism=PARALLEL
            ) as method:
                together = several_nodes(
                    params=of["pretrain"],
                    method=method,
                    nodes=nodes,
                    gpus=gpus,
                    store=store,
                    volumes=volumes,
                    image=image,
                    claim=claim,
                    cpu_selector=cpu_selector,
                    cpu_tolerations=cpu_tolerations,
                    gpu_selector=gpu_selector,
                    gpu_tolerations=gpu_tolerations,
                )
                # Where several nodes have trained the encoder, it is in the store already.
                encoder = pretrain(
                    params=of["pretrain"],
                    method=method,
                    gpus=gpus,
                    store=store,
                    volumes=volumes,
                )
                # kfp 2.17 hands into a loop only what a step there has as an input, too.
                on(encoder, "gpu", "pretrain", gpus).after(together)

            with dsl.ParallelFor(
                of["shards_of_finetune"], name="finetune shards", parallelism=PARALLEL
            ) as shard:
                made = finetune_shard(
                    params=of["finetune"],
                    encoders=dsl.Collected(encoder.outputs["folder"]),
                    shard=shard,
                    store=store,
                    volumes=volumes,
                )
                on(made, "gpu", "finetune a shard", "1")
            all_models = finetune(
                params=of["finetune"],
                encoders=dsl.Collected(encoder.outputs["folder"]),
                shards=dsl.Collected(made.outputs["folder"]),
                store=store,
                volumes=volumes,
            )
            models = on(all_models, "gpu", "finetune", "1").outputs["models"]

            judged = evaluate(
                params=of["evaluate"],
                encoders=dsl.Collected(encoder.outputs["folder"]),
                store=store,
                cohort=cohort,
                volumes=volumes,
                models=models,
            )
            on(judged, "cpu", "evaluate")
            with dsl.If(judged.outputs["promoted"] == "true", name="promoted"):
                registered = promote(
                    store=store, models=models, evaluation=judged.outputs["evaluation"]
                )
                on(registered, "light", "promote")

    return neurofoundry


def _build_several_nodes(pools: Mapping[str, Pool], wandb_secret: str) -> GraphComponent:
    """The part of the pipeline that pretrains on several machines, or does nothing."""
    gpu = pools["gpu"]

    @dsl.pipeline(name="several-nodes")
    def several_nodes(
        params: str,
        method: str,
        nodes: int,
        gpus: str,
        store: str,
        volumes: dsl.Input[dsl.Dataset],
        image: str,
        claim: str,
        cpu_selector: dict[str, str],
        cpu_tolerations: list[dict[str, str]],
        gpu_selector: dict[str, str],
        gpu_tolerations: list[dict[str, str]],
    ) -> None:
        on = _placing(
            pools,
            Site(image, claim, wandb_secret),
            cpu=(cpu_selector, cpu_tolerations),
            gpu=(gpu_selector, gpu_tolerations),
        )
        with dsl.If(nodes > 1, name="more than one node"):
            launched = pretrain_on_nodes(
                params=params,
                method=method,
                nodes=nodes,
                gpus=gpus,
                image=image,
                claim=claim,
                mount=MOUNT,
                pool=gpu.machines(),
                selector=gpu_selector,
                tolerations=gpu_tolerations,
                secret=wandb_secret,
                store=store,
                volumes=volumes,
            )
            # It waits for the machines as long as they train, and an hour to get them.
            on(launched, "light", "pretrain on several nodes", hours=gpu.hours + 1)
            kubernetes.use_field_path_as_env(launched, "POD_NAME", "metadata.name")

    return several_nodes


def _placing(
    pools: Mapping[str, Pool], site: Site, *, cpu: tuple[Any, Any], gpu: tuple[Any, Any]
) -> Callable[..., dsl.PipelineTask]:
    """How a step gets a machine by its role, on nodes with these (selector, tolerations)."""

    def on(
        task: dsl.PipelineTask,
        role: str,
        name: str,
        accelerators: Any = None,
        hours: float | None = None,
    ) -> dsl.PipelineTask:
        # Light steps have nothing to resume: what is wrong with them stays wrong.
        briefly = role == "light" and hours is None
        task.set_retry(**(RETRIES | {"num_retries": 1} if briefly else RETRIES))
        # Groups the runs in W&B. Not a parameter: the name of the run is no input of a stage.
        kubernetes.use_field_path_as_env(
            task, "NEUROFOUNDRY_RUN", "metadata.labels['workflows.argoproj.io/workflow']"
        )
        selector, tolerations = gpu if role == "gpu" else cpu
        return node_pools.place(
            task,
            name,
            pools[role],
            site,
            selector=selector,
            tolerations=tolerations,
            accelerators=accelerators,
            hours=hours,
        )

    return on
