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

import docker
import pandas as pd
import pytest
import yaml
from kfp import compiler, dsl

import neurofoundry
from neurofoundry.errors import RunFailedError, UsageError
from neurofoundry.kubeflow import trainjob
from neurofoundry.kubeflow.api import Api
from neurofoundry.kubeflow.schemas import Machines, Pool
from neurofoundry.runtime.files import hash_file
from pipelines import compiled, local
from tests.e2e.conftest import ROOT, Run
from tests.support.kubernetes import NAMESPACE
from tests.support.trainer import Trainer, trainer
from tests.support.wheels import wheel

# Whole pipelines in containers: twenty minutes where cores are slow or shared.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

BASE = "neurofoundry-base:bookworm"
IMAGE = "neurofoundry:cpu"
CLI = Path("/usr/bin/docker")  # another one on the PATH may be without BuildKit


def run_local(
    command: Run,
    project: Path,
    store: Path,
    *more: str,
    data: tuple[str | Path, ...] = (),
    params: Path | None = None,
) -> None:
    """Run the pipeline of this checkout, on the project's data and parameters if not on others."""
    data = data or ("--data", project / "data")
    command(
        sys.executable, "-m", "pipelines", "run-local", *data, "--store", store,
        "--params", params or project / "params.yaml", "--param", "preprocess_shards=2",
        "--param", "finetune_shards=2", *more, cwd=ROOT, PYTHONPATH=str(ROOT),
    )  # fmt: skip


def outputs(store: Path, stage: str = "*") -> dict[Path, int]:
    """The finished outputs in a store, and when they were made."""
    records = store.glob(f"{stage}/*/stage.json")
    return {record.parent: record.stat().st_mtime_ns for record in records}


def summary(store: Path) -> str:
    """What the exit handler says of the newest run."""
    found = (store / "pipeline").rglob("summarize/summary")
    return max(found, key=lambda path: path.stat().st_mtime_ns).read_text()


@pytest.fixture(scope="module")
def repository(project: Path, command: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the project, without data, whose commit names a remote that has them."""
    clone = tmp_path_factory.mktemp("origin") / "clone"
    command("git", "clone", "-q", project, clone, cwd=ROOT)
    command("dvc", "remote", "add", "-d", "store", project / ".dvc/cache", cwd=clone)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    command(*git, "commit", "-qam", "the remote", cwd=clone)
    command("git", "tag", "v1", cwd=clone)
    return clone


@pytest.fixture(scope="module")
def in_processes(
    project: Path, repository: Path, command: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store after a run that has fetched its data."""
    store = tmp_path_factory.mktemp("kubeflow") / "store"
    data = ("--param", f"data_repository={repository}", "--param", "data_revision=v1")
    run_local(command, project, store, "--runner", "subprocess", data=data)
    return store


def test_the_numbers_are_those_of_dvc_repro_to_the_last_digit(
    in_processes: Path, project: Path
) -> None:
    (evaluation,) = outputs(in_processes, "evaluate")
    for name in ("metrics.json", "promotion.json", "tables/metrics.tsv", "plots/roc.tsv"):
        assert (evaluation / name).read_bytes() == (project / "evaluation" / name).read_bytes()


def test_kubeflow_is_told_the_numbers_the_curves_and_the_report(in_processes: Path) -> None:
    outputs = {}
    for path in (in_processes / "pipeline").rglob("executor_output.json"):
        told = json.loads(path.read_text())
        for name, listed in told["artifacts"].items():
            outputs[path.parent.name, name] = listed["artifacts"][0]["metadata"]
    steps = {step for step, _ in outputs}
    assert {"ingest", "preprocess", "preprocess-shard", "pretrain", "finetune", "evaluate"} <= steps
    metrics = outputs["evaluate", "metrics"]
    aucs = [value for name, value in metrics.items() if "_auc_" in name]
    assert aucs
    assert all(0 <= auc <= 1 for auc in aucs)
    roc = outputs["evaluate", "roc"]
    assert roc["confidenceMetrics"][0]["recall"] == 0
    assert len(roc["confusionMatrix"]["rows"]) == 2
    assert outputs["preprocess", "volumes"]["data_version"]
    (report,) = (in_processes / "pipeline").rglob("evaluate/report")
    assert report.read_text().startswith("<!doctype html>")
    said = summary(in_processes)
    assert said.startswith("# The run has succeeded")
    (evaluation,) = in_processes.glob("evaluate/[!.]*")
    assert f"- evaluation: `{evaluation}`" in said
    assert "| sex_auc_test_" in said


def test_a_second_run_takes_over_all_but_what_a_changed_rule_decides(
    in_processes: Path, project: Path, command: Run, tmp_path: Path
) -> None:
    """Data that lie elsewhere change nothing; a rule that is met brings the promoted model."""
    fetched = yaml.safe_load((project / "data.dvc").read_text())["outs"][0]["md5"]
    assert {path.name for path in (in_processes / "data").iterdir()} == {fetched, ".cache"}
    # What passes from step to step is short: a step's command stands often in the run's status.
    kept = {path.name.partition("-")[0] for path in (in_processes / "params").iterdir()}
    assert kept == {"ingest", "preprocess", "pretrain", "finetune", "evaluate"}
    measured = pd.read_csv(project / "evaluation/tables/differences.tsv", sep="\t")
    better = measured[measured["verdict"] == "better"].iloc[0]
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["evaluate"]["promotion"] = {
        name: str(better[column])
        for name, column in (
            ("task", "task"),
            ("initialization", "init"),
            ("metric", "metric"),
            ("over", "versus"),
            ("split", "split"),
        )
    }
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(values, sort_keys=False))

    before = outputs(in_processes)
    run_local(command, project, in_processes, "--runner", "subprocess", params=params)
    after = outputs(in_processes)
    assert before.items() <= after.items()
    made = {folder.parent.name: folder for folder in after.keys() - before.keys()}
    assert set(made) == {"evaluate", "promote"}
    assert len(after) == len(before) + 2
    weights = (made["promote"] / "model.safetensors").read_bytes()
    (model,) = (project / "models").glob(f"{better['task']}/{better['init']}/1.0/0")
    assert weights == (model / "model.safetensors").read_bytes()


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
    said = summary(tmp_path / "store")
    assert said.startswith("# The run has not come to its end")
    assert "`configure` failed (exit code 2: a parameter or a file of yours" in said


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
    assert len(found.labels["org.opencontainers.image.revision"]) == 40
    assert found.labels["org.opencontainers.image.version"] == neurofoundry.__version__
    assert found.attrs["Config"]["User"] == "10001:10001"
    code = (
        "import importlib.util, json, os;"
        "parts = json.load(open('/opt/neurofoundry/sbom.json'))['components'];"
        "names = [part['purl'].rpartition('@')[0] for part in parts];"
        "print(json.dumps([os.getuid(), importlib.util.find_spec('kfp') is None, names]))"
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
    locked = (ROOT / "docker/requirements.lock").read_text().splitlines()
    names = [line.partition("==")[0].lower().replace("_", "-") for line in locked]
    expected = {f"pkg:pypi/{name}" for name in names}
    assert {*expected, "pkg:pypi/neurofoundry", "pkg:deb/debian/libc6"} <= set(parts)
    # Where only torch's build for CUDA can be had, its libraries come along; `make image` says so.
    for_cuda = any(part.startswith("pkg:pypi/nvidia") for part in parts)
    assert found.attrs["Size"] < (6.5e9 if for_cuda else 1.8e9)


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


def test_a_torch_for_cuda_gets_the_libraries_without_which_it_cannot_be_imported(
    engine: Any, tmp_path: Path
) -> None:
    (tmp_path / "docker").mkdir()
    shutil.copy(ROOT / "docker/Dockerfile", tmp_path / "docker")
    (tmp_path / "docker/requirements.lock").write_text(f"# {uuid4()}\ntorch==9.9.9\n")
    wheels = tmp_path / "build/wheels"
    wheel(wheels, "torch", "9.9.9", needs="nvidia-cublas", code="import nvidia_cublas")
    wheel(wheels, "nvidia_cublas", "13.1", code="")
    tag = f"neurofoundry-cuda:{os.getpid()}"
    try:
        subprocess.run(
            [CLI, "build", "--file", "docker/Dockerfile", "--target", "cpu-packages", "--tag", tag,
             "--build-arg", f"BASE_IMAGE={BASE}", "."],
            cwd=tmp_path, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=True,
        )  # fmt: skip
        engine.containers.run(tag, ["python3", "-c", "import torch"], remove=True)
    finally:
        with contextlib.suppress(docker.errors.ImageNotFound):
            engine.images.remove(tag)


def test_an_image_in_which_the_package_does_not_run_is_removed(image: str, tmp_path: Path) -> None:
    """`make image` with an engine that fails to run anything."""
    broken = tmp_path / "docker"
    broken.write_text(f'#!/bin/sh\ncase "$1" in run) exit 1;; *) exec {CLI} "$@";; esac\n')
    broken.chmod(0o755)
    build = ["make", "image", f"BASE_IMAGE={BASE}", f"PYTHON={sys.executable}", f"DOCKER={broken}"]
    done = subprocess.run([*build, "VERSION=0"], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode != 0
    client = docker.from_env()
    assert not client.images.list("neurofoundry:cpu-unchecked")
    labels = client.images.get(image).labels
    assert labels["org.opencontainers.image.version"] == neurofoundry.__version__
    client.close()


def test_the_image_fetches_data_with_a_read_only_root_and_without_git(
    image: str, project: Path, repository: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    mounts = [docker.types.Mount("/store", str(tmp_path), type="bind")]
    for place in (repository, project / ".dvc/cache"):
        mounts.append(docker.types.Mount(str(place), str(place), type="bind", read_only=True))
    client = docker.from_env()
    said = client.containers.run(
        image,
        ["python3", "-m", "neurofoundry", "configure", "--params",
         (project / "params.yaml").read_text(), "--store", "/store", "--repository",
         f"file://{repository}", "--revision", "v1"],
        remove=True, read_only=True, network_disabled=True, mounts=mounts, tmpfs={"/tmp": ""},
    )  # fmt: skip
    client.close()
    fetched = Path(json.loads(said)["data"])
    expected = yaml.safe_load((project / "data.dvc").read_text())["outs"][0]["md5"]
    assert fetched == Path("/store/data") / expected
    for path in (project / "data").rglob("*.nii.gz"):
        copy = tmp_path / "data" / expected / path.relative_to(project / "data")
        assert copy.read_bytes() == path.read_bytes()


@dsl.container_component
def failing():
    return dsl.ContainerSpec(image=IMAGE, command=["python3", "-c", "raise SystemExit(3)"])


def test_a_container_that_fails_at_once_never_counts_as_done(image: str, tmp_path: Path) -> None:
    """With kfp's own runner some of these end before it asks how (kubeflow/pipelines#13332)."""
    compiler.Compiler().compile(failing, str(tmp_path / "failing.yaml"))
    documents = compiled.read(tmp_path / "failing.yaml")
    options = {"runner": local.Runner.docker, "data": None, "store": tmp_path / "store"}
    for _ in range(8):
        with pytest.raises(RunFailedError):
            local.run(documents, {}, image=image, **options)
    with pytest.raises(UsageError, match=r"there is no such image here: `make image`"):
        local.run(documents, {}, image="neurofoundry:none", **options)


INSIDE = """
import hashlib, json, shutil, subprocess, sys
from pathlib import Path

store = Path("/store")
free, *words = sys.argv[1:]
if free:
    (store / "others").write_bytes(bytes(shutil.disk_usage(store).free - int(free)))
said = []
for _ in range(2 if free else 1):
    command = ["python3", "-m", "neurofoundry", *words, "--store", str(store), "--out", "/tmp/out"]
    done = subprocess.run(command, capture_output=True, text=True)
    left = {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.rglob("*") if path.is_file()
    }
    said.append([done.returncode, done.stderr, left])
    if free:
        (store / "others").unlink(missing_ok=True)
print(json.dumps(said))
"""
"""Runs a stage in a container, and says how it ended and what it has left in the store. With a
number: on a volume that has so many bytes left; and again, when others have made room on it."""


def run_inside(
    image: str, project: Path, store: Path | int, stage: str, *flags: str, free: str = ""
) -> list[tuple[int, str, dict[str, str]]]:
    """INSIDE as the user of the image, whom no /etc/passwd knows, as on a cluster.

    ``store`` is a folder, mounted read-only, or the bytes of a volume.
    """
    project.parent.chmod(0o755)
    mounts = [docker.types.Mount("/project", str(project), type="bind", read_only=True)]
    tmpfs = {"/tmp": "exec"}
    if isinstance(store, int):
        tmpfs["/store"] = f"size={store},mode=1777"
    else:
        mounts.append(docker.types.Mount("/store", str(store), type="bind", read_only=True))
    client = docker.from_env()
    said = client.containers.run(
        image,
        ["python3", "-c", INSIDE, free, stage, *flags],
        remove=True,
        read_only=True,
        network_disabled=True,
        mounts=mounts,
        tmpfs=tmpfs,
        environment={name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ},
    )
    client.close()
    found: list[tuple[int, str, dict[str, str]]] = json.loads(said)
    return found


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("check", "/store: Read-only file system"),
        ("ingest", "Read-only file system. Nothing is lost"),
    ],
)
def test_a_store_that_cannot_be_written_is_said(
    image: str, project: Path, tmp_path: Path, stage: str, message: str
) -> None:
    tmp_path.chmod(0o777)
    params = (project / "params.yaml").read_text()
    flags = ["--data", "/project/data", "--params", params] if stage == "ingest" else []
    ((code, text, left),) = run_inside(image, project, tmp_path, stage, *flags)
    assert (code, left) == (2, {})
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("stage", "flags", "free", "output", "content", "unfinished"),
    [
        (
            "preprocess",
            ["--data", "/project/data", "--cohort", "/project/cohort", "--shard", "1/12"],
            "400000", "volumes", "*.nii", ".nii",
        ),
        (
            "pretrain", ["--volumes", "/project/volumes", "--method", "simclr", "--processes", "1"],
            "3000000", "encoder/simclr", "encoder.safetensors", "views.png",
        ),
    ],
    ids=["preprocess", "pretrain"],
)  # fmt: skip
def test_a_volume_that_fills_up_is_said_nothing_is_published_and_the_stage_goes_on_with_room(
    image: str, project: Path, stage: str, flags: list[str], free: str, output: str, content: str,
    unfinished: str,
) -> None:  # fmt: skip
    flags += ["--params", (project / "params.yaml").read_text()]
    full, roomy = run_inside(image, project, 64_000_000, stage, *flags, free=free)
    code, text, left = full
    assert code == 2, text
    assert "No space left on device. Nothing is lost" in text
    assert "Traceback" not in text
    inside = [path.split("/")[1:] for path in left if path.startswith(f"{stage}/")]
    assert all(folder.endswith(".partial") for folder, *_ in inside)
    assert not [path for path in inside if path[-1] == "stage.json"]
    assert [path for path in inside if path[-1].endswith(unfinished)]  # it was in the middle

    code, text, left = roomy
    assert code == 0, text
    (record,) = (path for path in left if path.endswith("/stage.json"))
    made = {
        Path(path).relative_to(Path(record).parent): found
        for path, found in left.items()
        if Path(path).is_relative_to(Path(record).parent) and Path(path).match(content)
    }
    assert made
    for path, found in made.items():
        assert found == hash_file(project / output / path)


def numbers(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings and lists hold, by its path."""
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from numbers(value, f"{key}/{name}")
    else:
        yield key, content


def test_killed_containers_are_retried_and_the_numbers_are_those_of_dvc_repro(
    image: str, project: Path, command: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    killed: list[str] = []
    ended = threading.Event()

    def started(stage: str) -> bool:
        """Whether the stage has work that a kill would cost."""
        pattern = {"preprocess": ".*.partial/**/*.nii", "pretrain": ".*.partial/views.png"}[stage]
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
        run_local(command, project, store, "--image", image)
    finally:
        ended.set()
        killer.join()
    assert killed == ["preprocess", "pretrain"]
    (evaluation,) = outputs(store, "evaluate")
    ours, theirs = (
        dict(numbers(json.loads((folder / "metrics.json").read_text())))
        for folder in (project / "evaluation", evaluation)
    )
    # Sums of a jackknife differ in the last digit with the number of threads.
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
        assert theirs[name] == same, name
    (volumes,) = [
        folder
        for folder in (store / "preprocess").glob("[!.]*")
        if len(pd.read_csv(folder / "scans.tsv", sep="\t"))
        == len(pd.read_csv(project / "volumes/scans.tsv", sep="\t"))
    ]
    for path in (project / "volumes").rglob("*.nii"):
        assert (volumes / path.relative_to(project / "volumes")).read_bytes() == path.read_bytes()


def test_two_nodes_of_which_one_is_killed_end_with_the_weights_of_two_processes(
    image: str, project: Path, tmp_path: Path
) -> None:
    """What a step does on a cluster, with containers of this machine for Kubeflow's machines."""
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
    machines = Machines(
        pool=Pool(cpu="1", memory="4Gi", hours=1, scratch="1Gi"),
        nodes=2,
        processes=0,
        image=image,
        claim="neurofoundry",
        mount="/store",
        selector={},
        tolerations=(),
        secret="wandb",
    )
    job = trainjob.train_job(
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
            api = Api(cluster.url, NAMESPACE, tmp_path, poll_s=0.5)
            killer = threading.Thread(target=kill, args=[found])
            killer.start()
            try:
                with pytest.raises(trainjob.TrainJobError, match=r"Node 1 .* with exit code 137"):
                    trainjob.train(api, job)
            finally:
                killed.set()
                killer.join()
            assert not found.containers
            trainjob.train(api, job)
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
