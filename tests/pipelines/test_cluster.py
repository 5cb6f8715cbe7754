from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from neurofoundry.errors import RefusedError, RunFailedError, UnreachableError, UsageError
from pipelines import cluster, compiled
from tests.support.kubeflow_api import COOKIE, RUN, TOKEN, Stub, serve

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "registry.example/neurofoundry@sha256:" + "a" * 64


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's client keeps a file there
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return compiled.read(compiled.COMMITTED)


def given(**more: str) -> dict[str, str]:
    return {"params": "seed: 1\n", "data_version": "abc", "image": IMAGE, **more}


class TestArguments:
    def test_texts_become_what_the_pipeline_declares(self, documents: list[Any]) -> None:
        texts = given(gpus="2", preprocess_shards="16", gpu_selector='{"pool": "h200"}')
        values = cluster.arguments(documents, texts)
        assert values["gpus"] == "2"
        assert values["preprocess_shards"] == 16
        assert values["gpu_selector"] == {"pool": "h200"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"gpu": "2"}, r"--param gpu: .*Did you mean 'gpus'\?"),
            ({"preprocess_shards": "many"}, "preprocess_shards=many: expected a whole number"),
            ({"preprocess_shards": "true"}, "expected a whole number"),
            ({"gpu_selector": "[1]"}, "gpu_selector=.*expected a JSON object"),
            ({"gpu_tolerations": "{}"}, "expected a JSON list"),
        ],
    )
    def test_wrong_ones_are_named(
        self, documents: list[Any], change: dict[str, str], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            cluster.arguments(documents, given(**change))

    def test_missing_ones_are_named(self, documents: list[Any]) -> None:
        with pytest.raises(UsageError, match="needs image: give"):
            cluster.arguments(documents, {"params": ""})

    def test_an_image_by_tag_is_refused(self) -> None:
        with pytest.raises(UsageError, match="expected a digest"):
            cluster.by_digest("registry.example/neurofoundry:latest")

    def test_the_version_of_the_data_is_that_of_dvc(self, tmp_path: Path) -> None:
        expected = yaml.safe_load((ROOT / "data.dvc").read_text())["outs"][0]["md5"]
        assert cluster.data_version(ROOT / "data.dvc") == expected
        with pytest.raises(UsageError, match="--data-version"):
            cluster.data_version(tmp_path / "data.dvc")


def connect(stub: Stub, token: str | None = TOKEN) -> cluster.Cluster:
    return cluster.Cluster(stub.url, "lab", token=token)


def submit(stub: Stub, documents: list[Any], *, cache: bool = True) -> str:
    return connect(stub).submit(
        documents,
        cluster.arguments(documents, given()),
        experiment="study",
        name="first",
        service_account="runner",
        cache=cache,
    )


class TestSubmit:
    def test_a_run_is_started_as_it_was_asked_for(self, stub: Stub, documents: list[Any]) -> None:
        assert submit(stub, documents) == RUN
        (sent,) = stub.runs
        assert sent["display_name"] == "first"
        assert sent["service_account"] == "runner"
        assert sent["runtime_config"]["parameters"] == given()
        assert stub.experiments[0]["display_name"] == "study"
        platform = sent["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]
        assert platform == documents[1]["platforms"]["kubernetes"]

    def test_the_cache_switch_reaches_every_step(self, stub: Stub, documents: list[Any]) -> None:
        def cached(sent: dict[str, Any]) -> list[bool]:
            spec = [sent["pipeline_spec"]["pipeline_spec"]]
            return [
                task.get("cachingOptions", {}).get("enableCache", False)
                for task in compiled.tasks(spec)
                if "dag" not in spec[0]["components"][task["componentRef"]["name"]]
            ]

        submit(stub, documents)
        submit(stub, documents, cache=False)
        with_cache, without = map(cached, stub.runs)
        assert sum(with_cache) >= 8
        assert not any(without)

    def test_a_run_is_followed_to_its_end(
        self, stub: Stub, capsys: pytest.CaptureFixture[str]
    ) -> None:
        connect(stub).wait(RUN, poll_s=0)
        said = capsys.readouterr().err
        assert [word in said for word in ("running", "succeeded", "preprocess")] == [True] * 3
        stub.states, stub.asked = ["RUNNING", "FAILED"], 0
        with pytest.raises(RunFailedError, match=rf"failed in preprocess: .*{RUN}"):
            connect(stub).wait(RUN, poll_s=0)

    def test_a_cluster_that_is_away_for_a_while_does_not_end_the_waiting(
        self, stub: Stub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stub.states = ["RUNNING", "away", "away", "SUCCEEDED"]
        connect(stub).wait(RUN, poll_s=0)
        stub.states, stub.asked = ["RUNNING", "away"], 0
        monkeypatch.setattr(cluster, "PATIENCE", 2)
        with pytest.raises(UnreachableError, match="503"):
            connect(stub).wait(RUN, poll_s=0)
        assert stub.asked == 4

    def test_what_the_cluster_refuses_is_said_in_its_words(
        self, stub: Stub, documents: list[Any]
    ) -> None:
        with pytest.raises(RefusedError, match="400: missing parameters"):
            connect(stub).submit(
                documents, {}, experiment="e", name="n", service_account=None, cache=True
            )

    def test_an_upload_is_a_new_version_of_the_pipeline(self, stub: Stub) -> None:
        connect(stub).upload(compiled.COMMITTED, "c0ffee")
        connect(stub).upload(compiled.COMMITTED, "decaf")
        paths = [path.rsplit("/", 1)[1] for path, _ in stub.uploads]
        assert paths == ["upload", "upload_version", "upload_version"]
        assert [query["name"] for _, query in stub.uploads] == [
            ["neurofoundry"],
            ["c0ffee"],
            ["decaf"],
        ]

    def test_a_schedule_runs_one_at_a_time(self, stub: Stub, documents: list[Any]) -> None:
        connect(stub).schedule(
            documents,
            cluster.arguments(documents, given()),
            experiment="study",
            name="nightly",
            cron=cluster.check_cron("0 0 2 * * *"),
            service_account=None,
            cache=False,
        )
        (sent,) = stub.recurring
        assert sent["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
        assert (sent["max_concurrency"], sent["no_catchup"]) in ((1, True), ("1", True))
        spec = [sent["pipeline_spec"].get("pipeline_spec", sent["pipeline_spec"])]
        assert not any(task["cachingOptions"] for task in compiled.tasks(spec))
        with pytest.raises(UsageError, match="six fields"):
            cluster.check_cron("0 2 * * *")


class TestNoEntry:
    @pytest.mark.parametrize("token", [None, "wrong"])
    def test_a_wrong_token_is_said_at_once(self, stub: Stub, token: str | None) -> None:
        with pytest.raises(RefusedError, match=r"does not let us in \(401\)"):
            connect(stub, token)

    def test_a_token_file_is_read_again_with_every_call(self, stub: Stub, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text(TOKEN)
        client = cluster.Cluster(stub.url, "lab", token_file=path)
        stub.states = ["SUCCEEDED"]
        client.wait(RUN, poll_s=0)
        path.write_text("expired")
        with pytest.raises(RefusedError):
            client.wait(RUN, poll_s=0)
        with pytest.raises(UsageError, match="no such file"):
            cluster.Cluster(stub.url, "lab", token_file=tmp_path / "none")

    def test_a_cookie_opens_the_door(self, stub: Stub) -> None:
        stub.states = ["SUCCEEDED"]
        cluster.Cluster(stub.url, "lab", cookie=COOKIE).wait(RUN, poll_s=0)
        with pytest.raises(RefusedError):
            cluster.Cluster(stub.url, "lab", cookie="authservice_session=old")

    def test_a_host_that_does_not_answer_is_named(self, stub: Stub) -> None:
        stub.shutdown()
        stub.server_close()
        with pytest.raises(UnreachableError, match=r"no answer"):
            connect(stub)

    def test_a_host_that_takes_calls_and_says_nothing_is_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster, "ANSWER_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            host = f"http://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(UnreachableError, match=r"no answer \(ReadTimeout\)"):
                cluster.Cluster(host, "lab", token=TOKEN)

    def test_an_address_of_something_else_is_named(self, stub: Stub) -> None:
        with pytest.raises(UnreachableError, match=r"no Kubeflow Pipelines there \(404\)"):
            cluster.Cluster(f"{stub.url}/dashboard", "lab", token=TOKEN)
        with pytest.raises(UnreachableError, match=r"there \(a page of something else\)"):
            cluster.Cluster(f"{stub.url}/page", "lab", token=TOKEN)
        with pytest.raises(UsageError, match="expected an address with https://"):
            cluster.Cluster("kubeflow.example", "lab", token=TOKEN)


def test_each_fault_has_a_line_and_an_exit_code_of_its_own(stub: Stub, tmp_path: Path) -> None:
    def run(*more: str, host: str = stub.url, token: str = TOKEN) -> tuple[int, str, float]:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pipelines", "submit", "--host", host, "--namespace", "lab",
             "--image", IMAGE, *more],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KF_PIPELINES_TOKEN": token,
                 "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr + done.stdout, time.monotonic() - started

    # Data of another repository has the version that the repository says.
    code, _, _ = run("--param", "data_repository=https://git.example/study")
    assert code == 0
    assert "data_version" not in stub.runs.pop()["runtime_config"]["parameters"]
    code, text, _ = run("--wait")
    assert "Warning" not in text  # of kfp
    assert (code, f"{stub.url}/#/runs/details/{RUN}" in text) == (0, True)
    sent = stub.runs[0]["runtime_config"]["parameters"]
    assert sent["params"] == (ROOT / "params.yaml").read_text()
    assert sent["data_version"] == cluster.data_version(ROOT / "data.dvc")
    stub.states, stub.asked = ["FAILED"], 0
    codes = {
        2: run("--param", "gpu=2"),
        4: run("--wait"),
        5: run(token="wrong"),
        6: run(host="http://127.0.0.1:9"),
    }
    assert {expected: ended[0] for expected, ended in codes.items()} == {2: 2, 4: 4, 5: 5, 6: 6}
    for _, text, _ in codes.values():
        assert len(text.strip().splitlines()[-1]) > 20
