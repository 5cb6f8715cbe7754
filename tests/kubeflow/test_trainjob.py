from __future__ import annotations

import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from neurofoundry.cli import main as cli
from neurofoundry.errors import UnreachableError, UsageError
from neurofoundry.kubeflow import api as kubernetes
from neurofoundry.kubeflow import trainjob
from neurofoundry.kubeflow.api import Api
from neurofoundry.kubeflow.schemas import Machines, Pool
from tests.support.kubernetes import JOBS, LAUNCHER, Cluster, Handler, condition, pod, refusal

POOL = {
    "cpu": "8",
    "memory": "64Gi",
    "hours": 96,
    "shm": "16Gi",
    "scratch": "10Gi",
    "accelerator": {"type": "nvidia.com/gpu", "count": 1},
    "affinity": [{"key": "gpu", "operator": "In", "values": ["h100"]}],
}
MACHINES = Machines(
    pool=Pool.model_validate(POOL),
    nodes=2,
    processes=4,
    image="registry.example/neurofoundry@sha256:0",
    claim="neurofoundry",
    mount="/store",
    selector={"pool": "gpu"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    secret="wandb",
)
PARAMS = (Path(__file__).parents[2] / "params.yaml").read_text()
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "launcher", "uid": "pod-uid"}


def job(machines: Machines = MACHINES, **change: Any) -> dict[str, Any]:
    given = {
        "method": "simclr",
        "params": PARAMS,
        "volumes": Path("/store/preprocess/abc"),
        "store": Path("/store"),
        "run": "run-1",
        "owner": OWNER,
    }
    return trainjob.train_job(machines, **(given | change))


NAME = job()["metadata"]["name"]


def methods(cluster: Cluster, path: str = JOBS) -> list[str]:
    return [method for method, asked in cluster.asked if asked.startswith(path)]


class TestTrainJob:
    def test_it_asks_for_the_machines_of_the_pool(self) -> None:
        spec = job()["spec"]
        trainer = spec["trainer"]
        assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
        resources = {
            "requests": {"cpu": "8", "memory": "64Gi"},
            "limits": {"memory": "64Gi", "nvidia.com/gpu": "4"},
        }
        assert trainer["resourcesPerNode"] == resources
        assert {"name": "NEUROFOUNDRY_CORES", "value": "8"} in trainer["env"]
        assert spec["activeDeadlineSeconds"] == 96 * 3600
        assert trainer["command"][-2:] == ["-m", "neurofoundry"]
        (patch,) = spec["runtimePatches"]
        (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        pods = node["template"]["spec"]["template"]["spec"]
        assert pods["nodeSelector"] == {"pool": "gpu"}
        assert pods["tolerations"] == list(MACHINES.tolerations)
        mounted = {mount["mountPath"] for mount in pods["containers"][0]["volumeMounts"]}
        assert mounted == {"/store", "/dev/shm", "/tmp"}

    def test_a_restricted_namespace_admits_its_pods_and_istio_adds_nothing(self) -> None:
        """The four words of the Pod Security Standard `restricted`, and the image's own user."""
        (patch,) = job()["spec"]["runtimePatches"]
        (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        template = node["template"]["spec"]["template"]
        assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
        spec = template["spec"]
        security = {**spec["securityContext"], **spec["containers"][0]["securityContext"]}
        assert security == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }

    def test_its_pods_have_what_the_pool_says_of_pods(self) -> None:
        more = {
            "cpu_limit": "16", "labels": {"kueue.x-k8s.io/queue-name": "lab"},
            "annotations": {"example.org/a": "b"}, "pull_secrets": ["registry"],
            "env": {"HTTPS_PROXY": "http://proxy"}, "run_as_user": 4242,
        }  # fmt: skip
        pool = Pool.model_validate(POOL | more)
        made = job(MACHINES.model_copy(update={"pool": pool}))
        assert refusal(json.loads(json.dumps(made))) == ""
        trainer = made["spec"]["trainer"]
        assert trainer["resourcesPerNode"]["limits"]["cpu"] == "16"
        assert {"name": "HTTPS_PROXY", "value": "http://proxy"} in trainer["env"]
        (patch,) = made["spec"]["runtimePatches"]
        (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        template = node["template"]["spec"]["template"]
        assert template["metadata"]["labels"] == more["labels"]
        assert template["metadata"]["annotations"] == {
            "example.org/a": "b", "sidecar.istio.io/inject": "false",
        }  # fmt: skip
        assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert template["spec"]["securityContext"]["runAsUser"] == 4242

    def test_the_crd_knows_every_field(self) -> None:
        assert refusal(json.loads(json.dumps(job()))) == ""
        wrong = job()
        wrong["spec"]["trainer"]["numNode"] = 2
        assert refusal(wrong) == '.spec.trainer: unknown field "numNode"'

    def test_without_gpus_there_is_a_process_a_node(self) -> None:
        trainer = job(MACHINES.model_copy(update={"processes": 0}))["spec"]["trainer"]
        assert trainer["numProcPerNode"] == 1
        assert set(trainer["resourcesPerNode"]["limits"]) == {"memory"}

    def test_its_name_follows_from_run_method_and_command(self) -> None:
        names = {
            each["metadata"]["name"]
            for each in (job(), job(), job(run="2"), job(method="mae"), job(params="{}"))
        }
        assert len(names) == 4
        assert NAME.startswith("simclr-")


class TestTrain:
    def test_the_first_node_is_heard_and_nothing_is_left(
        self, cluster: Cluster, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cluster.pods = [pod(NAME, 0, exit_code=0), pod(NAME, 1, exit_code=0)]
        for each in cluster.pods:
            name = each["metadata"]["name"]
            cluster.logs[name] = [f"2026-01-01T00:00:0{i}.5Z {name} says {i}" for i in range(3)]
        trainjob.train(api, job())
        said = capsys.readouterr().out
        assert [f"says {i}" in said for i in range(3)] == [True] * 3
        assert "node-0-1" not in said
        assert "2026" not in said
        assert cluster.jobs == {}
        assert methods(cluster)[0] == "POST"
        assert methods(cluster)[-1] == "DELETE"

    def test_a_line_is_printed_once_however_often_the_log_breaks_off(
        self, cluster: Cluster, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (first,) = cluster.pods = [pod(NAME, 0)]
        log = cluster.logs[first["metadata"]["name"]] = []
        looks = []

        def grow(_: Any) -> dict[str, str] | None:
            looks.append(1)
            log.append(f"2026-01-01T00:00:01.{len(looks)}Z line {len(looks)}")
            return condition("Complete") if len(looks) == 4 else None

        cluster.ends, cluster.silent = grow, True
        trainjob.train(api, job())
        # kfp's local runner, where a test of this process has used it, indents what is printed.
        said = capsys.readouterr().out.splitlines()
        lines = [line.strip() for line in said if "line" in line]
        assert lines == [f"line {i}" for i in range(1, 5)]

    def test_a_retry_takes_over_the_job_of_the_try_before(
        self, cluster: Cluster, api: Api, logged: io.StringIO
    ) -> None:
        cluster.jobs[NAME] = job()
        trainjob.train(api, job())
        assert f"TrainJob {NAME}: taken over" in logged.getvalue()
        assert methods(cluster).count("POST") == 1
        assert cluster.jobs == {}

    def test_a_job_of_another_content_is_left_alone(self, cluster: Cluster, api: Api) -> None:
        other = job()
        other["metadata"]["annotations"][trainjob.SPEC] = "other"
        cluster.jobs[NAME] = other
        with pytest.raises(UsageError, match=f"TrainJob {NAME} of another content"):
            trainjob.train(api, job())
        assert cluster.jobs == {NAME: other}

    def test_a_job_that_is_being_deleted_is_waited_for(self, cluster: Cluster, api: Api) -> None:
        cluster.jobs[NAME] = job()
        cluster.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        threading.Timer(0.3, cluster.jobs.pop, [NAME]).start()
        made = []
        cluster.created = made.append
        trainjob.train(api, job())
        assert len(made) == 1

    def test_a_failure_says_what_the_first_node_to_fail_said(
        self, cluster: Cluster, api: Api
    ) -> None:
        cluster.pods = [
            pod(NAME, 0, exit_code=1, finished="2026-01-01T00:09:00Z"),
            pod(NAME, 1, exit_code=137, finished="2026-01-01T00:08:00Z"),
        ]
        name = cluster.pods[1]["metadata"]["name"]
        cluster.logs[name] = [f"2026-01-01T00:00:00Z line {i}." for i in range(50)]
        cluster.ends = lambda _: condition("Failed", "JobFailed", "jobset failed")
        with pytest.raises(trainjob.TrainJobError) as error:
            trainjob.train(api, job())
        text = str(error.value)
        assert error.value.exit_code == 137
        assert f"Node 1 (pod {name}) ended with exit code 137" in text
        assert "JobFailed: jobset failed" in text
        assert "line 49." in text
        assert "line 29." not in text

    def test_a_persons_mistake_is_the_cause_whatever_ended_before(
        self, cluster: Cluster, api: Api
    ) -> None:
        cluster.pods = [
            pod(NAME, 0, exit_code=1, finished="2026-01-01T00:08:00Z"),  # lost the other
            pod(NAME, 1, exit_code=3, finished="2026-01-01T00:08:01Z"),
        ]
        cluster.ends = lambda _: condition("Failed", "JobFailed", "jobset failed")
        with pytest.raises(trainjob.TrainJobError, match="exit code 3") as error:
            trainjob.train(api, job())
        assert error.value.exit_code == 3
        assert cluster.jobs == {}

    def test_a_job_that_waits_for_its_machines_says_so(
        self,
        cluster: Cluster,
        api: Api,
        logged: io.StringIO,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(trainjob, "SPEAK_EVERY_S", 0.0)
        looks: list[int] = []

        def start(_: Any) -> dict[str, str] | None:
            looks.append(1)
            if len(looks) == 3:
                cluster.pods = [pod(NAME, 0)]
                cluster.logs[cluster.pods[0]["metadata"]["name"]] = ["2026-01-01T00:00:01Z step 1"]
            return condition("Complete") if len(looks) == 4 else None

        waiting = pod(NAME, 0)
        waiting["status"]["phase"] = "Pending"
        cluster.ends, cluster.created = start, lambda _: cluster.pods.append(waiting)
        trainjob.train(api, job())
        said = [line.partition(": ")[2] for line in logged.getvalue().splitlines()]
        assert said == ["2 nodes", *["node 0 is Pending"] * 2, "node 0 is Running", "complete"]

    def test_a_job_that_does_not_end_is_stopped(self, cluster: Cluster, api: Api) -> None:
        api.patience_s = 0
        cluster.ends = lambda _: None
        late = job()
        late["spec"]["activeDeadlineSeconds"] = 1
        with pytest.raises(trainjob.TrainJobError, match="has not ended in time"):
            trainjob.train(api, late)
        assert cluster.jobs == {}

    def test_without_an_answer_the_job_is_left_to_the_next_try(
        self, cluster: Cluster, api: Api
    ) -> None:
        api.patience_s = 0.2
        cluster.created = lambda _: cluster.fails.extend([503] * 1000)
        with pytest.raises(UnreachableError, match="the retry of this step follows it"):
            trainjob.train(api, job())
        assert list(cluster.jobs) == [NAME]

    def test_the_token_may_be_replaced_while_it_runs(
        self, cluster: Cluster, api: Api, account: Path
    ) -> None:
        def rotate(_: Any) -> None:
            cluster.token = "another-token"
            (account / "token").write_text(cluster.token)

        cluster.created = rotate
        trainjob.train(api, job())
        assert cluster.jobs == {}

    def test_a_step_that_is_told_to_stop_takes_the_job_along(
        self, cluster: Cluster, api: Api
    ) -> None:
        cluster.ends = lambda _: None
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            trainjob.train(api, job())
        assert stopped.value.code == 143
        assert cluster.jobs == {}
        assert signal.getsignal(signal.SIGTERM) == before


def test_the_owner_is_the_workflow_of_the_run(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "launcher")
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "name": "neurofoundry-abc",
        "uid": "workflow-uid",
    }
    assert trainjob.owner_of_this_run(api) == workflow
    monkeypatch.setitem(LAUNCHER["metadata"], "ownerReferences", [])
    assert trainjob.owner_of_this_run(api) == OWNER


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate with")
def test_the_step_speaks_to_its_cluster_over_tls(
    account: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, certificate = account / "key", account / "ca.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=stub",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"cluster": cluster}))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made: list[dict[str, Any]] = []
    cluster.created = made.append
    monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_address[1]))
    monkeypatch.setenv("POD_NAME", "launcher")
    monkeypatch.setenv("NEUROFOUNDRY_RUN", "neurofoundry-abc")
    volumes = account / "volumes"
    volumes.mkdir()
    words = [
        "neurofoundry", "pretrain-on-nodes", "--params", PARAMS, "--volumes", volumes,
        "--method", "simclr", "--store", "/store", "--nodes", 2, "--processes", 4,
        "--image", "i", "--claim", "c", "--mount", "/store", "--secret", "wandb",
        "--pool", json.dumps(POOL), "--selector", "{}", "--tolerations", "[]",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert ended.value.code in (None, 0), capsys.readouterr().err
    (asked,) = made
    assert asked["metadata"]["ownerReferences"][0]["uid"] == "workflow-uid"
    arguments = asked["spec"]["trainer"]["args"]
    assert arguments[0] == "pretrain"
    assert [word in arguments for word in (PARAMS, str(volumes))] == [True] * 2


def test_for_one_node_the_step_returns_at_once_and_leaves_the_gpus_to_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks no API: here is none."""
    (tmp_path / "volumes").mkdir()
    outputs = {"parameters": {"gpus_left": {}}, "outputFile": str(tmp_path / "told.json")}
    words = [
        "neurofoundry", "pretrain-on-nodes", "--params", PARAMS, "--volumes", tmp_path / "volumes",
        "--method", "simclr", "--store", "/store", "--nodes", 1, "--processes", 4,
        "--image", "i", "--claim", "c", "--mount", "/store", "--secret", "wandb",
        "--pool", json.dumps(POOL), "--selector", "{}", "--tolerations", "[]",
        "--executor-input", json.dumps({"inputs": {}, "outputs": outputs}),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (None, 0)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["parameterValues"] == {"gpus_left": "4"}
