from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
from kfp.pipeline_spec import pipeline_spec_pb2

from neurofoundry.cli import cluster as cli
from neurofoundry.errors import UsageError
from neurofoundry.kubeflow.schemas import Pool
from pipelines import compiled, node_pools, placeholders

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("ingest", "preprocess", "pretrain", "finetune", "evaluate")
PROFILES = ("plain", "gke", "eks")


@pytest.fixture(scope="module", params=PROFILES)
def documents(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp(request.param)
    path, _ = compiled.write(folder, pools=request.param, spot=True)
    return compiled.read(path)


def test_what_is_committed_is_what_the_code_compiles_to(tmp_path: Path) -> None:
    for path in compiled.write(tmp_path):
        committed = (compiled.HERE / path.name).read_text()
        assert path.read_text() == committed, "run: python -m pipelines compile"


def test_both_documents_are_read_strictly(documents: list[dict[str, Any]]) -> None:
    pipeline, platform = documents
    json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(pipeline["deploymentSpec"]["executors"])
    for executor in executors.values():
        json_format.ParseDict(executor, kubernetes.KubernetesExecutorConfig())
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({"nodeSelectr": {}}, kubernetes.KubernetesExecutorConfig())


def test_every_reference_is_handed_down_to_where_it_is_used(
    documents: list[dict[str, Any]],
) -> None:
    """kfp forgets parameters that only a pod's limits use; the run would fail on the cluster."""
    pipeline, platform = documents
    components = {"root": pipeline["root"], **pipeline["components"]}
    for name, component in components.items():
        given = set(component.get("inputDefinitions", {}).get("parameters", {}))
        for task in component.get("dag", {}).get("tasks", {}).values():
            for source in task.get("inputs", {}).get("parameters", {}).values():
                if wanted := source.get("componentInputParameter"):
                    assert wanted in given, (name, wanted)
    containers = pipeline["deploymentSpec"]["executors"]
    seen = set()
    for task in compiled.tasks(documents):
        if label := components[task["componentRef"]["name"]].get("executorLabel"):
            held = containers[label]["container"]
            for text in (held["image"], yaml.safe_dump(held["resources"], width=1000)):
                for channel in placeholders.IMAGE.findall(text.replace("''", "'")):
                    assert channel in task["inputs"]["parameters"], (label, channel)
                    seen.add(channel)
    assert seen >= {"pipelinechannel--image", "pipelinechannel--pretrain-on-nodes-gpus_left"}
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, executor in executors.items():
        text = yaml.safe_dump(executor)
        assert "nodeSelectorJson" in text, name
        assert "tolerationJson" in text or "tolerations" in text, name


def words(command: str) -> dict[str, str]:
    """The flags of a command of dvc.yaml."""
    parts = command.split()
    return {"stage": parts[1], **dict(zip(parts[2::2], parts[3::2], strict=True))}


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_runs_the_command_of_dvc(stage: str) -> None:
    documents = compiled.read(compiled.COMMITTED)
    container = documents[0]["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]
    assert container["command"] == ["python3", "-m", "neurofoundry", stage]
    flags = {word for word in container["args"] if word.startswith("--")}
    dvc = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    expected = words(dvc["cmd"])
    assert expected.pop("stage") == stage
    cluster = {"--store", "--copy", "--executor-input", "--reuse", "--processes"}
    assert flags - cluster == set(expected)
    assert {"--store", "--executor-input"} <= flags


def test_roles_ask_for_their_pools(documents: list[dict[str, Any]]) -> None:
    pipeline, platform = documents
    executors = pipeline["deploymentSpec"]["executors"]
    nodes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name in ("exec-pretrain", "exec-finetune-shard"):
        resources = executors[name]["container"]["resources"]
        assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
        count = resources["accelerator"]["resourceCount"]
        assert ("gpus_left" in count) if name == "exec-pretrain" else (count == "1")
        mounts = {mount["mountPath"]: mount for mount in nodes[name]["emptyDirMounts"]}
        assert mounts["/dev/shm"]["medium"] == "Memory"
    # What takes shards together holds no GPU.
    for name in ("ingest", "preprocess", "evaluate", "configure", "finetune", "pretrain-on-nodes"):
        name = f"exec-{name}"
        assert "accelerator" not in executors[name]["container"]["resources"]
    # A number is read as empty by the driver, and the pod would get no GPU.
    assert compiled.parameters(documents)["gpus"]["parameterType"] == "STRING"


def test_a_step_uses_the_cores_that_it_asks_for(documents: list[dict[str, Any]]) -> None:
    for name, executor in documents[0]["deploymentSpec"]["executors"].items():
        container = executor["container"]
        (cores,) = (each["value"] for each in container["env"] if each["name"] == node_pools.CORES)
        assert cores == container["resources"]["resourceCpuRequest"], name
        # A parameter would make it another step for the cache.
        assert not any("CORES" in word or word == "--workers" for word in container["args"])


def test_several_nodes_are_asked_for_by_a_light_step_before_pretraining(
    documents: list[dict[str, Any]],
) -> None:
    pipeline, platform = documents
    tasks = {task["taskInfo"]["name"]: task for task in compiled.tasks(documents)}
    assert "pretrain-on-nodes" in tasks["pretrain"]["dependentTasks"]
    # It says how many GPUs pretraining itself is to hold: none after several nodes.
    accelerator = pipeline["deploymentSpec"]["executors"]["exec-pretrain"]["container"]["resources"]
    left = "{{$.inputs.parameters['pipelinechannel--pretrain-on-nodes-gpus_left']}}"
    assert accelerator["accelerator"]["resourceCount"] == left
    container = pipeline["deploymentSpec"]["executors"]["exec-pretrain-on-nodes"]["container"]
    assert "accelerator" not in container["resources"]
    flags = {word for word in container["args"] if word.startswith("--")}
    parameters = inspect.signature(cli.pretrain_on_nodes).parameters
    assert flags == {f"--{name.replace('_', '-')}" for name in parameters}
    steps = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    waits, trains = (
        int(steps[name]["activeDeadlineSeconds"])
        for name in ("exec-pretrain-on-nodes", "exec-pretrain")
    )
    assert waits > trains
    fields = [each["name"] for each in steps["exec-pretrain-on-nodes"]["fieldPathAsEnv"]]
    assert "POD_NAME" in fields


def test_data_is_fetched_before_it_is_looked_at_with_keys_that_need_not_exist(
    documents: list[dict[str, Any]],
) -> None:
    pipeline, platform = documents
    (first,) = (t for t in compiled.tasks(documents) if t["taskInfo"]["name"] == "configure")
    assert not first["cachingOptions"].get("enableCache")
    container = pipeline["deploymentSpec"]["executors"]["exec-configure"]["container"]
    flags = {word for word in container["args"] if word.startswith("--")}
    parameters = set(inspect.signature(cli.configure).parameters) - {"overrides"}
    assert flags == {f"--{name.replace('_', '-')}" for name in parameters}
    (place,) = (each for each in container["env"] if each["name"] != node_pools.CORES)
    assert place == {"name": "GIT_CONFIG_GLOBAL", "value": "/etc/xdg/dvc/gitconfig"}
    node = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-configure"]
    (secret,) = node["secretAsVolume"]
    assert (secret["mountPath"], secret["optional"]) == ("/etc/xdg/dvc", True)
    for task in compiled.tasks(documents):
        if task["taskInfo"]["name"] in ("ingest", "preprocess a shard", "preprocess"):
            source = task["inputs"]["parameters"]["data"]
            assert "configure" in str(source), source


@pytest.mark.parametrize("profile", PROFILES)
def test_the_launcher_reads_the_pools_as_they_are_handed_to_it(profile: str) -> None:
    pool = node_pools.read(profile, spot=True)["gpu"]
    handed_over = json.loads(json.dumps(pool.machines()))
    assert not {"selector", "tolerations", "spot"} & set(handed_over)  # given with each run
    without = {"selector": {}, "tolerations": (), "spot": None}
    assert Pool.model_validate(handed_over) == pool.model_copy(update=without)
    assert pool.accelerator


def test_every_step_is_retried_has_a_deadline_and_the_volume(
    documents: list[dict[str, Any]],
) -> None:
    nodes = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, node in nodes.items():
        assert int(node["activeDeadlineSeconds"]) >= 3600, name
        assert node["pvcMount"][0]["mountPath"] == "/store", name
        assert node["emptyDirMounts"][-1]["mountPath"] == "/tmp", name
        assert node["emptyDirMounts"][-1]["sizeLimit"] == "10Gi", name
        secret = node["secretAsEnv"][0]
        assert secret["optional"], name
        assert node["securityContext"] == {"runAsNonRoot": True}, name
    steps = [
        task for task in compiled.tasks(documents) if task["componentRef"]["name"][5:] in STAGES
    ]
    assert len(steps) == len(STAGES)
    for task in steps:
        assert task["retryPolicy"]["maxRetryCount"] >= 1


def test_every_try_of_a_step_may_take_its_hours(documents: list[dict[str, Any]]) -> None:
    """The window of retries begins with the first try, and kills what runs when it ends."""
    pipeline, platform = documents
    nodes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    seen = 0
    for task in compiled.tasks(documents):
        component = pipeline["components"][task["componentRef"]["name"]]
        if label := component.get("executorLabel"):
            policy = task["retryPolicy"]
            tries = policy["maxRetryCount"] + 1
            first, factor = int(policy["backoffDuration"][:-1]), policy["backoffFactor"]
            waits = sum(first * factor**retry for retry in range(policy["maxRetryCount"]))
            deadline = int(nodes[label]["activeDeadlineSeconds"])
            assert int(policy["backoffMaxDuration"][:-1]) >= tries * deadline + waits
            seen += 1
    assert seen == len(nodes)


def test_no_part_of_the_pipeline_may_do_nothing(documents: list[dict[str, Any]]) -> None:
    """A condition that is not met leaves what is around it running for ever, says Kubeflow."""
    assert not any(
        "condition" in task.get("triggerPolicy", {}) for task in compiled.tasks(documents)
    )
    tasks = {task["taskInfo"]["name"]: task for task in compiled.tasks(documents)}
    for name in ("promote", "summarize"):  # what these say is of this run
        assert not tasks[name]["cachingOptions"].get("enableCache"), name
    inputs = documents[0]["components"]["comp-summarize"]["inputDefinitions"]["parameters"]
    assert set(inputs) == {"store"}  # and no state of the run


class TestNodePools:
    def test_spot_nodes_are_asked_for_in_addition(self) -> None:
        usual = node_pools.read("gke")["gpu"]
        spot = node_pools.read("gke", spot=True)["gpu"]
        assert set(usual.selector) < set(spot.selector)
        assert len(spot.tolerations) == len(usual.tolerations) + 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- a", "no profile 'mine'"),
            ("other: {}", "there is other"),
            ("mine: {cpu: {}}", r"yaml: mine: .*\n  light: missing\.\n  cpu\.cpu: missing"),
            ("mine: 3", r"yaml: mine: .*\n  Input should be a valid dictionary"),
            (
                "mine: {light: {cpu: '1', memory: 1Gi, hours: 1}, cpu: {cpu: '1', memory: 1Gi, "
                "hours: 1}, gpu: {cpu: '1', memory: 1Gi, hours: 1, selectr: {}}}",
                r"mine: .*\n  gpu\.selectr: unknown key\. Did you mean 'selector'\?",
            ),
            ("mine: [", "line 1: not valid YAML"),
            ("mine: {}\nmine: {}", 'line 2: .*duplicate key "mine"'),
        ],
        ids=["list", "no such profile", "no role", "no pool", "wrong key", "no YAML", "duplicate"],
    )
    def test_a_file_that_cannot_be_used_is_explained(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        path = tmp_path / "pools.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            node_pools.read("mine", path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cpu": "lots"}, r"gpu.cpu: expected cores, such as '8' or '500m' \(found 'lots'\)"),
            ({"cpu": "0"}, "gpu.cpu: expected cores"),
            ({"cpu_limit": "2"}, r"gpu: cpu_limit \(2\) is less than cpu \(8\)"),
            ({"memory": "64 Gi"}, r"gpu.memory: expected bytes with a unit and no space"),
            ({"memory": "64GB"}, "gpu.memory: expected bytes"),
            ({"memory": "64"}, "gpu.memory: expected at least 256Mi"),
            ({"shm": "65Gi"}, r"gpu: shm \(65Gi\) is more than memory \(64Gi\)"),
            ({"scratch": "big"}, "gpu.scratch: expected bytes"),
            ({"hours": 0.0001}, "gpu.hours: .*greater than or equal to 0.1"),
            ({"selector": {"pool": "a b"}}, "gpu.selector.pool: 'a b' is no value of a label"),
            ({"labels": {"-a": "b"}}, "gpu.labels.*'-a' is no name of a label"),
            ({"pull_secrets": ["My Secret"]}, "gpu.pull_secrets.0: .* is no name of an object"),
            ({"env": {"1A": "x"}}, "gpu.env.*'1A' is no name of an environment variable"),
            ({"env": {"WANDB_API_KEY": "x"}}, "WANDB_API_KEY: the pipeline sets it itself"),
            ({"run_as_user": 0}, "gpu.run_as_user: .*greater than or equal to 1"),
            ({"accelerator": {"type": "gpu", "count": 1}}, "'gpu' is no name of a resource"),
            ({"tolerations": [{"operator": "Equal", "key": "a"}]}, "give both"),
            ({"tolerations": [{"key": "a", "value": "b"}]}, "Exists compares no value"),
            ({"runtime_class": "nvidia"}, "gpu.runtime_class: unknown key"),
        ],
    )
    def test_a_pool_that_no_cluster_could_give_is_one_line_with_its_role_and_key(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        pool: dict[str, Any] = {"cpu": "8", "memory": "64Gi", "hours": 1}
        path = tmp_path / "pools.yaml"
        profile = {"light": pool, "cpu": pool, "gpu": pool | change}
        path.write_text(yaml.safe_dump({"mine": profile}))
        with pytest.raises(UsageError, match=message) as raised:
            node_pools.read("mine", path)
        first, *problems = str(raised.value).splitlines()
        assert first.startswith(f"{path}: mine: ")
        assert len(problems) == 1

    def test_all_that_a_pool_says_reaches_its_pods_and_those_of_no_other(
        self, tmp_path: Path
    ) -> None:
        plain = {"cpu": "2", "memory": "4Gi", "hours": 1}
        special = plain | {
            "cpu_limit": "4",
            "labels": {"kueue.x-k8s.io/queue-name": "lab"},
            "annotations": {"example.org/note": "any text"},
            "pull_secrets": ["registry"],
            "env": {"HTTPS_PROXY": "http://proxy.example:3128"},
            "run_as_user": 4242,
            "run_as_group": 100,
            "tolerations": [{"operator": "Exists", "effect": None}],
        }
        light = plain | {"selector": {"pool": "small"}, "tolerations": [{"key": "small"}]}
        a100 = {"type": "amd.com/gpu", "count": 1}
        profile = {
            "light": light, "cpu": special,
            "gpu": plain | {"accelerator": {"type": "nvidia.com/mig-3g.40gb", "count": 2}},
            "finetune": plain | {"accelerator": a100, "selector": {"pool": "amd"}},
        }  # fmt: skip
        file = tmp_path / "pools.yaml"
        file.write_text(yaml.safe_dump({"mine": profile}))
        path, smoke = compiled.write(tmp_path / "out", pools="mine", file=file)
        documents = compiled.read(path)
        defaults = compiled.parameters(documents)
        assert defaults["light_selector"]["defaultValue"] == {"pool": "small"}
        assert defaults["cpu_tolerations"]["defaultValue"] == [{"operator": "Exists"}]
        nodes = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        containers = documents[0]["deploymentSpec"]["executors"]
        for name, role in (
            ("configure", "light"), ("summarize", "light"), ("promote", "light"),
            ("ingest", "cpu"), ("evaluate", "cpu"), ("pretrain", "gpu"),
        ):  # fmt: skip
            asked = nodes[f"exec-{name}"]["nodeSelector"]["nodeSelectorJson"]
            assert asked["componentInputParameter"].endswith(f"{role}_selector"), name
        ingest, container = nodes["exec-ingest"], containers["exec-ingest"]["container"]
        assert ingest["podMetadata"] == {
            "labels": special["labels"], "annotations": special["annotations"],
        }  # fmt: skip
        assert ingest["imagePullSecret"][0]["secretName"] == "registry"
        assert ingest["securityContext"] == {
            "runAsNonRoot": True, "runAsUser": "4242", "runAsGroup": "100",
        }  # fmt: skip
        assert container["resources"]["resourceCpuLimit"] == "4"
        proxy = {"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}
        assert proxy in container["env"]
        assert "podMetadata" not in nodes["exec-configure"]
        kinds = {
            name: containers[f"exec-{name}"]["container"]["resources"]["accelerator"][
                "resourceType"
            ]
            for name in ("pretrain", "finetune-shard")
        }
        assert kinds == {"pretrain": "nvidia.com/mig-3g.40gb", "finetune-shard": "amd.com/gpu"}
        asked = nodes["exec-finetune-shard"]["nodeSelector"]
        assert asked["nodeSelectorJson"]["runtimeValue"]["constant"] == {"pool": "amd"}
        names = {task["taskInfo"]["name"] for task in compiled.tasks(compiled.read(smoke))}
        assert names == {"light", "cpu", "gpu", "finetune"}
        for pipeline, more in (documents, compiled.read(smoke)):
            json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
            platform = more["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
            for executor in platform.values():
                json_format.ParseDict(executor, kubernetes.KubernetesExecutorConfig())

    def test_a_cluster_without_gpus_has_no_limits_for_them(self, tmp_path: Path) -> None:
        pool = "{cpu: '1', memory: 1Gi, hours: 1}"
        pools = tmp_path / "pools.yaml"
        pools.write_text(f"mine: {{light: {pool}, cpu: {pool}, gpu: {pool}}}")
        path, _ = compiled.write(tmp_path / "out", pools="mine", file=pools)
        assert "accelerator" not in path.read_text()
