"""The compiled pipeline itself: in processes, and in containers without a network."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest
import yaml

import docker
from neurofoundry.pretrain import nodes
from tests.e2e.conftest import ROOT, Run
from tests.e2e.trainer import Trainer, trainer
from tests.pretrain.kubernetes import NAMESPACE

pytestmark = pytest.mark.e2e

BASE = "neurofoundry-base:bookworm"
IMAGE = "neurofoundry:cpu"
CLI = Path("/usr/bin/docker")  # another one on the PATH may be without BuildKit


def run_local(command: Run, project: Path, store: Path, *more: str) -> Path:
    """Run the pipeline of this checkout on the project's data; the folder of the evaluation."""
    command(
        sys.executable, "-m", "pipelines", "run-local", "--data", project / "data",
        "--store", store, "--params", project / "params.yaml", "--param", "preprocess_parts=2",
        "--param", "finetune_parts=2", *more, cwd=ROOT, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    (evaluation,) = (store / "evaluate").iterdir()
    return evaluation


@pytest.fixture(scope="module")
def in_processes(project: Path, command: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("kubeflow") / "store"
    run_local(command, project, store, "--runner", "subprocess")
    return store


def test_the_numbers_are_those_of_dvc_repro_to_the_last_digit(
    in_processes: Path, project: Path
) -> None:
    (evaluation,) = (in_processes / "evaluate").iterdir()
    for name in ("metrics.json", "promotion.json", "tables/metrics.tsv", "plots/roc.tsv"):
        assert (evaluation / name).read_bytes() == (project / "evaluation" / name).read_bytes()


def test_kubeflow_is_told_the_numbers_the_curves_and_the_report(in_processes: Path) -> None:
    outputs = {}
    for path in (in_processes / "pipeline").rglob("executor_output.json"):
        told = json.loads(path.read_text())
        for name, listed in told["artifacts"].items():
            outputs[path.parent.name, name] = listed["artifacts"][0]["metadata"]
    steps = {step for step, _ in outputs}
    assert {"ingest", "preprocess", "preprocess-part", "pretrain", "finetune", "evaluate"} <= steps
    metrics = outputs["evaluate", "metrics"]
    aucs = [value for name, value in metrics.items() if name.endswith("/auc/value")]
    assert aucs
    assert all(0 <= auc <= 1 for auc in aucs)
    roc = outputs["evaluate", "roc"]
    assert roc["confidenceMetrics"][0]["recall"] == 0
    assert len(roc["confusionMatrix"]["rows"]) == 2
    assert outputs["preprocess", "volumes"]["data_version"]
    (report,) = (in_processes / "pipeline").rglob("evaluate/report")
    assert report.read_text().startswith("<!doctype html>")


def test_a_second_run_takes_over_every_output(
    in_processes: Path, project: Path, command: Run
) -> None:
    before = {path: path.stat().st_mtime_ns for path in in_processes.glob("*/*/stage.json")}
    run_local(command, project, in_processes, "--runner", "subprocess")
    after = {path: path.stat().st_mtime_ns for path in in_processes.glob("*/*/stage.json")}
    assert after == before


def test_a_wrong_parameter_ends_the_run_before_any_data_is_touched(
    project: Path, command: Run, tmp_path: Path
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text((project / "params.yaml").read_text().replace("epochs:", "epoch:"))
    done = command(
        sys.executable, "-m", "pipelines", "run-local", "--data", project / "data",
        "--store", tmp_path / "store", "--params", params, "--runner", "subprocess",
        cwd=ROOT, code=4, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert "Did you mean 'epochs'?" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store/ingest").exists()


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The Docker engine of this machine, with a base image for ours."""
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException:
        if os.environ.get("NEUROFOUNDRY_DOCKER") == "required":
            raise
        pytest.skip("no Docker engine on this machine")
    if not client.images.list(BASE):
        if not shutil.which("debootstrap"):
            pytest.skip("no base image, and no debootstrap to make one")
        subprocess.run([ROOT / "docker/base-image.sh", BASE], check=True)
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(engine: Any) -> str:
    """The image of this checkout, built here as an air-gapped site builds it."""
    build = ["make", "image", f"BASE_IMAGE={BASE}", f"PYTHON={sys.executable}"]
    subprocess.run([*build, f"DOCKER={CLI if CLI.exists() else 'docker'}"], cwd=ROOT, check=True)
    return IMAGE


def test_the_image_is_small_labelled_and_runs_as_nobody_without_a_network(image: str) -> None:
    client = docker.from_env()
    found = client.images.get(image)
    assert found.attrs["Size"] < 1.8e9
    assert found.labels["org.opencontainers.image.revision"]
    assert found.attrs["Config"]["User"] == "10001:10001"
    code = (
        "import importlib.util, json, os;"
        "parts = json.load(open('/opt/neurofoundry/sbom.json'))['components'];"
        "print(json.dumps([os.getuid(), importlib.util.find_spec('kfp') is None, len(parts)]))"
    )
    said = client.containers.run(
        image,
        ["python3", "-c", code],
        remove=True,
        read_only=True,
        network_disabled=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
    )
    user, without_kfp, parts = json.loads(said)
    assert (user, without_kfp) == (10001, True)
    assert parts > 50


def test_neither_data_nor_secrets_enter_the_build(image: str, tmp_path: Path) -> None:
    context = tmp_path / "context"
    for name in (
        "data/sub-01/anat/a.nii.gz", ".dvc/config.local", "wandb/run/x", ".git/config", ".env",
        "cohort/scans.tsv", "params.yaml", "neurofoundry/cli.py", "build/other", "pyproject.toml",
    ):  # fmt: skip
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("x")
    shutil.copy(ROOT / ".dockerignore", context)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    subprocess.run(
        [CLI, "build", "--file", tmp_path / "Dockerfile", "--output", tmp_path / "out", context],
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        check=True,
    )
    out = tmp_path / "out"
    copied = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert copied == {"neurofoundry/cli.py", "pyproject.toml"}


class Index(BaseHTTPRequestHandler):
    """A package index of one wheel, for those who have the token."""

    wheel = "private-1.0-py3-none-any.whl"
    secret = "t0ken-of-the-index"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        given = base64.b64encode(f"build:{self.secret}".encode()).decode()
        if self.headers["Authorization"] != f"Basic {given}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        body = f'<a href="/{self.wheel}">{self.wheel}</a>'.encode()
        if self.path == f"/{self.wheel}":
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w") as archive:
                about = "private-1.0.dist-info"
                archive.writestr("private.py", "")
                text = "Metadata-Version: 2.1\nName: private\nVersion: 1.0\n"
                archive.writestr(f"{about}/METADATA", text)
                text = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
                archive.writestr(f"{about}/WHEEL", text)
                archive.writestr(f"{about}/RECORD", "")
            body = content.getvalue()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html" if self.path != f"/{self.wheel}" else "x/zip")
        self.end_headers()
        self.wfile.write(body)


def test_the_key_of_a_private_index_is_in_no_layer(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "build/wheels").mkdir(parents=True)
    (tmp_path / "docker").mkdir()
    shutil.copy(ROOT / "docker/Dockerfile", tmp_path / "docker")
    # Another lock each time: a layer that an earlier build has kept would need no key.
    (tmp_path / "docker/requirements.lock").write_text(f"private==1.0  # {uuid4()}\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    index = f"http://build:{Index.secret}@127.0.0.1:{server.server_address[1]}/simple"
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
    tag = f"neurofoundry-secrets:{os.getpid()}"

    def build(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CLI, "build", "--file", "docker/Dockerfile", "--target", "cpu-packages", "--tag", tag,
             "--build-arg", f"BASE_IMAGE={BASE}", "--network", "host", *more, "."],
            cwd=tmp_path, env={**os.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    try:
        assert build("--build-arg", "HTTPS_PROXY=http://127.0.0.1:9").returncode != 0
        done = build("--secret", "id=pip.conf,src=pip.conf")
        assert done.returncode == 0, done.stderr
        assert Index.secret not in done.stderr + done.stdout
        assert Index.secret not in json.dumps(engine.images.get(tag).history())
        layers = b"".join(engine.images.get(tag).save())
        assert b"private-1.0.dist-info" in layers
        assert Index.secret.encode() not in layers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        with contextlib.suppress(docker.errors.ImageNotFound):
            engine.images.remove(tag)


INSIDE = """
import json, pathlib, subprocess, sys
command = ["python3", "-m", "neurofoundry", *sys.argv[1:]]
done = subprocess.run(command, capture_output=True, text=True)
left = [path.relative_to("/store").as_posix() for path in pathlib.Path("/store").rglob("*")]
print(json.dumps([done.returncode, done.stderr, left]))
"""
"""Runs a stage in a container, and says what it has left in the store."""


@pytest.mark.parametrize(
    ("stage", "mount", "message"),
    [
        ("check", "read-only", "/store: Read-only file system"),
        ("ingest", "read-only", "Read-only file system. Nothing is lost"),
        ("pretrain", "size=64k", "No space left on device. Nothing is lost"),
    ],
)
def test_a_store_that_is_full_or_cannot_be_written_is_said_and_nothing_is_published(
    image: str, project: Path, tmp_path: Path, stage: str, mount: str, message: str
) -> None:
    """As the user of the image, whom no /etc/passwd knows, as on a cluster."""
    volumes = ["--volumes", "/project/volumes", "--method", "simclr", "--processes", "1"]
    flags = {"check": [], "ingest": ["--data", "/project/data"], "pretrain": volumes}[stage]
    if stage != "check":
        flags += ["--params", (project / "params.yaml").read_text()]
    project.parent.chmod(0o755)
    tmp_path.chmod(0o777)
    mounts = [docker.types.Mount("/project", str(project), type="bind", read_only=True)]
    tmpfs = {"/tmp": "exec"}
    if mount == "read-only":
        mounts.append(docker.types.Mount("/store", str(tmp_path), type="bind", read_only=True))
    else:
        tmpfs["/store"] = f"{mount},mode=1777"
    client = docker.from_env()
    said = client.containers.run(
        image,
        ["python3", "-c", INSIDE, stage, *flags, "--store", "/store", "--out", "/tmp/out"],
        remove=True,
        read_only=True,
        network_disabled=True,
        mounts=mounts,
        tmpfs=tmpfs,
    )
    client.close()
    code, text, left = json.loads(said)
    assert code == 2, text
    assert message in text
    assert "Traceback" not in text
    outputs = [path for path in left if path.startswith(f"{stage}/")]
    assert all(path.split("/")[1].endswith(".partial") for path in outputs)
    assert not [path for path in left if path.endswith("stage.json")]


def test_killed_containers_are_retried_and_the_numbers_are_those_of_dvc_repro(
    image: str, project: Path, command: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    killed: list[str] = []
    ended = threading.Event()

    def started(stage: str) -> bool:
        """Whether the stage has work that a kill would cost."""
        pattern = {"preprocess": ".*.partial/*.nii", "pretrain": ".*.partial/views.png"}[stage]
        return any((store / stage).glob(pattern))

    def kill() -> None:
        client = docker.from_env()
        for stage in ("preprocess", "pretrain"):
            while not ended.wait(0.1) and stage not in killed:
                for container in client.containers.list():
                    with contextlib.suppress(docker.errors.APIError):
                        if f"neurofoundry {stage}" in " ".join(container.attrs["Args"]) and started(
                            stage
                        ):
                            container.kill()
                            killed.append(stage)
                            break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        evaluation = run_local(command, project, store, "--image", image)
    finally:
        ended.set()
        killer.join()
    assert killed == ["preprocess", "pretrain"]
    assert (evaluation / "metrics.json").read_bytes() == (
        project / "evaluation/metrics.json"
    ).read_bytes()
    (volumes,) = [
        folder
        for folder in (store / "preprocess").iterdir()
        if len(pd.read_csv(folder / "scans.tsv", sep="\t"))
        == len(pd.read_csv(project / "volumes/scans.tsv", sep="\t"))
    ]
    for path in (project / "volumes").glob("*.nii"):
        assert (volumes / path.name).read_bytes() == path.read_bytes()


def test_two_nodes_of_which_one_is_killed_end_with_the_weights_of_two_processes(
    image: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step does on a cluster, with containers of this machine for Kubeflow's machines."""
    monkeypatch.setattr(nodes, "POLL_S", 0.5)
    (tmp_path / "token").write_text("a-valid-token")
    store = tmp_path / "store"
    shutil.copytree(project / "volumes", store / "volumes")
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["pretrain"].update(epochs=6, checkpoint_minutes=0)
    values["pretrain"]["encoder"]["norm"] = "group"  # as several processes on CPUs need
    client = docker.from_env()
    network = client.networks.create(f"neurofoundry-{os.getpid()}", internal=True)
    options = {
        "network": network.name,
        "user": f"{os.getuid()}:{os.getgid()}",
        "mounts": [docker.types.Mount("/store", str(store), type="bind")],
        "environment": {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
        "read_only": True,
        "tmpfs": {"/tmp": "exec"},
    }
    machines = nodes.Machines(
        pool=nodes.Pool(cpu="1", memory="4Gi", hours=1),
        nodes=2,
        processes=0,
        image=image,
        claim="neurofoundry",
        mount="/store",
        selector={},
        tolerations=(),
        secret="wandb",
    )
    job = nodes.train_job(
        machines,
        method="simclr",
        params=yaml.safe_dump(values, sort_keys=False),
        volumes=Path("/store/volumes"),
        store=Path("/store/nodes"),
        run="test",
        owner={"apiVersion": "v1", "kind": "Pod", "name": "launcher", "uid": "1"},
    )
    killed = threading.Event()

    def kill(found: Trainer) -> None:
        while not killed.wait(0.05):
            if any(store.glob("nodes/pretrain/.*.partial/checkpoint/*.pt")):
                found.containers[1].kill()
                killed.set()

    try:
        with trainer(options) as (cluster, found):
            api = nodes.Api(cluster.url, NAMESPACE, tmp_path)
            killer = threading.Thread(target=kill, args=[found])
            killer.start()
            try:
                with pytest.raises(nodes.NodesError, match=r"Node 1 .* with exit code 137"):
                    nodes.train(api, job)
            finally:
                killed.set()
                killer.join()
            assert not found.containers
            nodes.train(api, job)
            assert not cluster.jobs
        alone = job["spec"]["trainer"]["args"].copy()
        alone[alone.index("--processes") + 1] = "2"
        alone[alone.index("--store") + 1] = "/store/processes"
        command = ["python3", "-m", "neurofoundry", *alone]
        client.containers.run(image, command, remove=True, **options)
    finally:
        network.remove()
        client.close()
    (of_nodes,) = store.glob("nodes/pretrain/*/encoder.safetensors")
    (of_processes,) = store.glob("processes/pretrain/*/encoder.safetensors")
    assert of_nodes.read_bytes() == of_processes.read_bytes()
