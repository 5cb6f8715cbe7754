"""Raw scans to an evaluated model: the five stages, fanned out over the pools of a cluster."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.graph_component import GraphComponent

from components.configure import configure
from components.evaluate import evaluate
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

RETRIES = 3
"""Tries of a step after the first. Each goes on where the one before was, so that a node that is
taken away costs minutes. Which failures are retried, the cluster decides (docs/kubeflow.md)."""
BACKOFF_S = 60
"""Seconds before the first retry; twice as long before each further one."""


def build(pools: Mapping[str, Pool], *, wandb_secret: str = "wandb") -> GraphComponent:
    """Build the pipeline for the machines of a cluster.

    ``wandb_secret`` is the name of a Kubernetes secret with the key ``api-key``; without it runs
    are recorded offline, in the store.
    """
    light, cpu, gpu = pools["light"], pools["cpu"], pools["gpu"]
    count = gpu.accelerator.count if gpu.accelerator else 0
    tolerations = {role: node_pools.plain(pool) for role, pool in pools.items()}

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
        light_selector: dict[str, str] = light.selector,
        light_tolerations: list[dict[str, str]] = tolerations["light"],
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
                all probes of an encoder, but no more than 16.
            nodes: Machines that pretrain together; more than one need Kubeflow Trainer.
            gpus: GPUs of each that pretrain together; a text, as a number would be ignored.
            light_selector: Labels of the nodes for steps that compute nothing.
            light_tolerations: Taints that these accept.
            cpu_selector: Labels of the nodes for CPU steps.
            cpu_tolerations: Taints that CPU steps accept.
            gpu_selector: Labels of the nodes for GPU steps, but for fine-tuning where that has a
                pool of its own.
            gpu_tolerations: Taints that these accept.
        """

        nodes_of = {
            "light": (light_selector, light_tolerations),
            "cpu": (cpu_selector, cpu_tolerations),
            "gpu": (gpu_selector, gpu_tolerations),
        }
        on = _placing(pools, Site(image, claim, wandb_secret), nodes_of)
        # Nothing that changes is an input of it: never from the cache.
        ended = on(summarize(store=store), "light", "summarize").set_caching_options(False)
        with dsl.ExitHandler(exit_task=ended, name="all stages"):
            checked = configure(
                params=params,
                preprocess_shards=preprocess_shards,
                finetune_shards=finetune_shards,
                data_version=data_version,
                data_repository=data_repository,
                data_revision=data_revision,
                store=store,
            )
            on(checked, "light", "configure", hours=cpu.hours)  # to download the data in
            known = _with_keys(checked).outputs
            stages, data = Stages(on, known, store), known["data"]
            cohort = stages.ingest(data)
            volumes = stages.preprocess(data, cohort)
            encoder = stages.pretrain(
                volumes,
                pools["gpu"],
                nodes=nodes,
                gpus=gpus,
                image=image,
                claim=claim,
                secret=wandb_secret,
                selector=gpu_selector,
                tolerations=gpu_tolerations,
            )
            models = stages.finetune(volumes, encoder)
            stages.evaluate(cohort, volumes, encoder, models)

    return neurofoundry


@dataclass(frozen=True)
class Stages:
    """What adds the steps of each stage to the pipeline; values are known when it runs."""

    on: Callable[..., dsl.PipelineTask]
    """Gives a step a machine by its role, and a name."""
    of: Mapping[str, Any]
    """What `configure` hands on: files with the parameters of each stage, methods, and shards."""
    store: Any

    def ingest(self, data: Any) -> Any:
        """Return the cohort."""
        task = ingest(params=self.of["ingest"], data=data, store=self.store)
        return self.on(task, "cpu", "ingest").outputs["cohort"]

    def preprocess(self, data: Any, cohort: Any) -> Any:
        """Return the volumes, made in shards."""
        shards = self.of["shards_of_preprocess"]
        common = {"params": self.of["preprocess"], "data": data, "cohort": cohort}
        with dsl.ParallelFor(shards, name="preprocess shards", parallelism=PARALLEL) as shard:
            task = preprocess_shard(**common, shard=shard, store=self.store)
            self.on(task, "cpu", "preprocess a shard")
        whole = preprocess(**common, shards=_folders(task), store=self.store)
        return self.on(whole, "cpu", "preprocess").outputs["volumes"]

    def pretrain(
        self,
        volumes: Any,
        pool: Pool,
        **machines: Any,
    ) -> dsl.PipelineTask:
        """Return the step that trains the encoder of a method; there is one for each.

        Where several ``machines`` of the ``pool`` have trained it in the step before, it is in the
        store already, and the step holds no GPU.
        """
        methods = self.of["methods"]
        common = {"params": self.of["pretrain"], "volumes": volumes, "store": self.store}
        with dsl.ParallelFor(methods, name="pretraining methods", parallelism=PARALLEL) as method:
            several = pretrain_on_nodes(
                **common, method=method, mount=MOUNT, pool=pool.machines(), **machines
            )
            # It waits for the machines as long as they train, and an hour to get them.
            self.on(several, "light", "pretrain on nodes", hours=pool.hours + 1)
            kubernetes.use_field_path_as_env(several, "POD_NAME", "metadata.name")
            gpus = several.outputs["gpus_left"]
            encoder = pretrain(**common, method=method, gpus=gpus)
            return self.on(encoder, "gpu", "pretrain", gpus)

    def finetune(self, volumes: Any, encoder: dsl.PipelineTask) -> Any:
        """Return the models, made in shards."""
        shards = self.of["shards_of_finetune"]
        common = {"params": self.of["finetune"], "volumes": volumes, "store": self.store}
        with dsl.ParallelFor(shards, name="finetune shards", parallelism=PARALLEL) as shard:
            task = finetune_shard(**common, encoders=_folders(encoder), shard=shard)
            self.on(task, "finetune", "finetune a shard", "1")
        whole = finetune(**common, encoders=_folders(encoder), shards=_folders(task))
        return self.on(whole, "cpu", "finetune").outputs["models"]  # it only takes them together

    def evaluate(self, cohort: Any, volumes: Any, encoder: dsl.PipelineTask, models: Any) -> None:
        """Evaluate the models, and register the one that is promoted, if any."""
        judged = evaluate(
            params=self.of["evaluate"],
            encoders=_folders(encoder),
            store=self.store,
            cohort=cohort,
            volumes=volumes,
            models=models,
        )
        self.on(judged, "cpu", "evaluate")
        evaluation = judged.outputs["evaluation"]
        registered = promote(store=self.store, models=models, evaluation=evaluation)
        # It leaves the note that the run has come to its end: never from the cache.
        self.on(registered, "light", "promote").set_caching_options(False)


def _folders(task: dsl.PipelineTask) -> Any:
    """Collect what a step of a loop has made; anew for each use, as the compiler changes it."""
    return dsl.Collected(task.outputs["folder"])


def _with_keys(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give the step that fetches data the keys of remotes and repositories."""
    # A branch may have moved, and a folder may have been deleted: never from the cache.
    task.set_caching_options(False)
    kubernetes.use_secret_as_volume(task, DVC_SECRET, DVC_CONFIG, optional=True)
    return task.set_env_variable("GIT_CONFIG_GLOBAL", f"{DVC_CONFIG}/gitconfig")


def _retry(task: dsl.PipelineTask, retries: int, hours: float) -> None:
    """Let a step be tried again, each time for as long as it may take.

    Argo's backoff.maxDuration is a window from the start of the first try: a later failure is not
    retried, and a try that is still running at its end is killed (kubeflow/pipelines#13452).
    """
    waits = BACKOFF_S * (2**retries - 1)
    window = math.ceil((retries + 1) * hours * 3600) + waits
    task.set_retry(
        num_retries=retries,
        backoff_duration=f"{BACKOFF_S}s",
        backoff_factor=2,
        backoff_max_duration=f"{window}s",
    )


def _placing(
    pools: Mapping[str, Pool], site: Site, nodes_of: Mapping[str, tuple[Any, Any]]
) -> Callable[..., dsl.PipelineTask]:
    """Return what gives a step a machine by its role; ``nodes_of``: (selector, tolerations)."""

    def on(
        task: dsl.PipelineTask,
        role: str,
        name: str,
        accelerators: Any = None,
        hours: float | None = None,
    ) -> dsl.PipelineTask:
        if role not in pools:
            role = "gpu"  # fine-tuning has no pool of its own
        pool = pools[role]
        # Light steps have nothing to resume: what is wrong with them stays wrong.
        retries = 1 if role == "light" and hours is None else RETRIES
        _retry(task, retries, hours or pool.hours)
        # Groups the runs in W&B. Not a parameter: the name of the run is no input of a stage.
        kubernetes.use_field_path_as_env(
            task, "NEUROFOUNDRY_RUN", "metadata.labels['workflows.argoproj.io/workflow']"
        )
        fixed = (pool.selector, node_pools.plain(pool))
        selector, tolerations = nodes_of.get(role, fixed)
        return node_pools.place(
            task,
            name,
            pool,
            site,
            selector=selector,
            tolerations=tolerations,
            accelerators=accelerators,
            hours=hours,
        )

    return on
