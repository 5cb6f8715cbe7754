"""Raw scans to an evaluated model: the five stages, fanned out over the pools of a cluster."""

from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl, kubernetes

from components.configure import configure
from components.evaluate import evaluate
from components.finetune import finetune, finetune_part
from components.ingest import ingest
from components.preprocess import preprocess, preprocess_part
from components.pretrain import pretrain
from components.promote import promote
from components.summarize import summarize
from pipelines import node_pools
from pipelines.node_pools import Pool

STORE = "/store"
"""Where the volume is mounted on a cluster."""

PARALLEL = 8
"""Steps of a loop that run at the same time; more wait."""

RETRIES = {
    "num_retries": 3,
    "backoff_duration": "60s",
    "backoff_factor": 2,
    "backoff_max_duration": "900s",
}
"""A step that is retried goes on where it was; a node that was taken away costs minutes."""


def build(pools: Mapping[str, Pool], *, wandb_secret: str = "wandb") -> Callable[..., Any]:
    """The pipeline for the machines of a cluster.

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
        data_version: str,
        image: str,
        store: str = STORE,
        claim: str = "neurofoundry",
        preprocess_parts: int = 4,
        finetune_parts: int = 0,
        gpus: str = str(count),
        cpu_selector: dict = cpu.selector,  # type: ignore[type-arg]
        cpu_tolerations: list = tolerations["cpu"],  # type: ignore[type-arg]
        gpu_selector: dict = gpu.selector,  # type: ignore[type-arg]
        gpu_tolerations: list = tolerations["gpu"],  # type: ignore[type-arg]
    ):
        """The pipeline.

        Args:
            params: The text of params.yaml.
            data_version: Folder of the raw data in STORE/data, named by its version (the md5 in
                data.dvc): other data is another name, so nothing stale is taken from the cache.
            image: The container image, by digest.
            store: Where the volume is mounted.
            claim: The persistent volume claim, to be mounted by several nodes at once.
            preprocess_parts: Steps that share the scans.
            finetune_parts: Steps that share the models to make; 0 is a step for each.
            gpus: GPUs that pretrain together; a text, as a number would be ignored.
            cpu_selector: Labels of the nodes for CPU steps.
            cpu_tolerations: Taints that CPU steps accept.
            gpu_selector: Labels of the nodes for GPU steps.
            gpu_tolerations: Taints that GPU steps accept.
        """

        def on(
            task: dsl.PipelineTask, pool: Pool, name: str, accelerators: Any = None
        ) -> dsl.PipelineTask:
            task.set_display_name(name)
            task.set_container_image(image)
            # Light steps have nothing to resume: what is wrong with them stays wrong.
            task.set_retry(**(RETRIES | {"num_retries": 1} if pool is light else RETRIES))
            kubernetes.mount_pvc(task, pvc_name=claim, mount_path=STORE)
            kubernetes.set_image_pull_policy(task, "IfNotPresent")
            secret = {"api-key": "WANDB_API_KEY"}
            kubernetes.use_secret_as_env(task, wandb_secret, secret, optional=True)
            # Groups the runs in W&B. Not a parameter: the name of the run is no input of a stage.
            kubernetes.use_field_path_as_env(
                task, "NEUROFOUNDRY_RUN", "metadata.labels['workflows.argoproj.io/workflow']"
            )
            if pool is gpu:
                labels = {"selector": gpu_selector, "tolerations": gpu_tolerations}
            else:
                labels = {"selector": cpu_selector, "tolerations": cpu_tolerations}
            node_pools.place(task, pool, accelerators=accelerators, **labels)
            return task

        data = f"{store}/data/{data_version}"
        ended = on(summarize(store=store), light, "summarize")
        with dsl.ExitHandler(exit_task=ended, name="all stages"):
            checked = on(
                configure(
                    params=params,
                    preprocess_parts=preprocess_parts,
                    finetune_parts=finetune_parts,
                ),
                light,
                "configure",
            )
            of = checked.outputs
            cohort = on(ingest(params=of["ingest"], data=data, store=store), cpu, "ingest")
            cohort = cohort.outputs["cohort"]

            with dsl.ParallelFor(
                of["parts_of_preprocess"], name="preprocess parts", parallelism=PARALLEL
            ) as part:
                scans = preprocess_part(
                    params=of["preprocess"], data=data, part=part, store=store, cohort=cohort
                )
                on(scans, cpu, "preprocess a part")
            whole = preprocess(
                params=of["preprocess"],
                data=data,
                parts=dsl.Collected(scans.outputs["folder"]),
                store=store,
                cohort=cohort,
            )
            volumes = on(whole, cpu, "preprocess").outputs["volumes"]

            with dsl.ParallelFor(
                of["methods"], name="pretraining methods", parallelism=PARALLEL
            ) as method:
                encoder = pretrain(
                    params=of["pretrain"],
                    method=method,
                    gpus=gpus,
                    store=store,
                    volumes=volumes,
                )
                # kfp 2.17 hands into a loop only what a step there has as an input, too.
                on(encoder, gpu, "pretrain", gpus)

            with dsl.ParallelFor(
                of["parts_of_finetune"], name="finetune parts", parallelism=PARALLEL
            ) as part:
                made = finetune_part(
                    params=of["finetune"],
                    encoders=dsl.Collected(encoder.outputs["folder"]),
                    part=part,
                    store=store,
                    volumes=volumes,
                )
                on(made, gpu, "finetune a part", "1")
            all_models = finetune(
                params=of["finetune"],
                encoders=dsl.Collected(encoder.outputs["folder"]),
                parts=dsl.Collected(made.outputs["folder"]),
                store=store,
                volumes=volumes,
            )
            models = on(all_models, gpu, "finetune", "1").outputs["models"]

            judged = evaluate(
                params=of["evaluate"],
                encoders=dsl.Collected(encoder.outputs["folder"]),
                store=store,
                cohort=cohort,
                volumes=volumes,
                models=models,
            )
            on(judged, cpu, "evaluate")
            with dsl.If(judged.outputs["promoted"] == "true", name="promoted"):
                registered = promote(
                    store=store, models=models, evaluation=judged.outputs["evaluation"]
                )
                on(registered, light, "promote")

    return neurofoundry
