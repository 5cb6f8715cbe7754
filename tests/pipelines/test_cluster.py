from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from neurofoundry.errors import RefusedError, RunFailedError, UnreachableError, UsageError
from pipelines import cluster, compiled
from pipelines.__main__ import app
from pipelines.arguments import check
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


class TestNames:
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
        check(documents, given()),
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

    def test_what_the_cluster_refuses_is_said_in_its_words(
        self, stub: Stub, documents: list[Any]
    ) -> None:
        with pytest.raises(RefusedError, match=r"400: .*parameter image is not optional"):
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

    def test_the_smoke_test_is_no_version_of_the_pipeline(self, stub: Stub) -> None:
        smoke = compiled.HERE / "smoke.yaml"
        assert connect(stub).upload(smoke, "c0ffee") == "neurofoundry-smoke"
        assert connect(stub).upload(compiled.COMMITTED, "c0ffee") == "neurofoundry"
        asked = [query.get("pipelineid", query["name"])[0] for _, query in stub.uploads]
        assert asked == ["neurofoundry-smoke"] * 2 + ["neurofoundry"] * 2

    def test_a_version_that_is_there_already_is_refused_in_the_words_of_the_server(
        self, stub: Stub
    ) -> None:
        connect(stub).upload(compiled.COMMITTED, "c0ffee")
        with pytest.raises(RefusedError, match="409: Failed to create a pipeline version"):
            connect(stub).upload(compiled.COMMITTED, "c0ffee")

    def test_a_schedule_runs_one_at_a_time(self, stub: Stub, documents: list[Any]) -> None:
        connect(stub).schedule(
            documents,
            check(documents, given()),
            experiment="study",
            name="nightly",
            cron="0 0 2 * * *",
            service_account=None,
            cache=False,
        )
        (sent,) = stub.recurring
        assert sent["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
        assert (sent["max_concurrency"], sent["no_catchup"]) in ((1, True), ("1", True))
        spec = [sent["pipeline_spec"].get("pipeline_spec", sent["pipeline_spec"])]
        assert not any(task["cachingOptions"] for task in compiled.tasks(spec))


class TestWait:
    def test_steps_are_told_by_name_and_number(
        self, stub: Stub, documents: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        stub.states = ["PENDING", "run-running", "run-succeeded"]
        given_shards = {"preprocess_shards": 100, "finetune_shards": 2}
        with caplog.at_level("INFO", "neurofoundry"):
            connect(stub).wait(RUN, documents, given_shards, poll_s=0)
        said = [record.getMessage() for record in caplog.records]
        assert "configure: done" in said
        assert "preprocess a shard: 23 of 100 done, 1 waiting (24/100)" in said
        assert "finetune a shard: 2 of 2 done" in said
        assert said[-1] == f"The run has succeeded: {connect(stub).url(RUN)}"
        assert not any(re.search(r"executor|driver|iteration|\(0\)", line) for line in said)
        assert len(said) < 20

    def test_a_failure_names_the_step_and_its_log(self, stub: Stub, documents: list[Any]) -> None:
        stub.states = ["run-failed"]
        log = "kubectl logs --namespace lab --container main neurofoundry-cpxx2-system-container-"
        with pytest.raises(
            cluster.StepsFailedError, match=rf"failed in preprocess \(log: `{log}"
        ) as raised:
            connect(stub).wait(RUN, documents, poll_s=0)
        assert raised.value.quick == ("preprocess",)

    def test_a_failure_before_any_step_names_the_driver(
        self, stub: Stub, documents: list[Any]
    ) -> None:
        stub.states = ["run-rbac"]
        with pytest.raises(
            cluster.StepsFailedError, match="failed in root-driver, before its step began"
        ):
            connect(stub).wait(RUN, documents, poll_s=0)

    def test_a_terminated_run_is_not_a_failed_one(self, stub: Stub, documents: list[Any]) -> None:
        stub.states = ["run-terminated"]
        with pytest.raises(cluster.StepsFailedError, match="The run was terminated") as raised:
            connect(stub).wait(RUN, documents, poll_s=0)
        assert not raised.value.may_pass(None)

    @pytest.mark.parametrize("code", [429, 500, 503])
    def test_a_cluster_that_is_busy_for_a_while_does_not_end_the_waiting(
        self, stub: Stub, documents: list[Any], monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        stub.states = ["RUNNING", code, code, "run-succeeded"]
        connect(stub).wait(RUN, documents, poll_s=0)
        stub.states, stub.asked = ["RUNNING", code], 0
        monkeypatch.setattr(cluster, "PATIENCE", 2)
        with pytest.raises(UnreachableError, match=f"{code}: Failed to get a run"):
            connect(stub).wait(RUN, documents, poll_s=0)
        assert stub.asked == 4

    def test_a_run_that_is_not_there_is_refused(self, stub: Stub, documents: list[Any]) -> None:
        stub.states = ["run-unknown"]
        with pytest.raises(RefusedError, match=r"404: Failed to get a run: .* not found"):
            connect(stub).wait(RUN, documents, poll_s=0)


class TestAgain:
    @staticmethod
    def follow(stub: Stub, states: list[str | int], again: int) -> int:
        """Exit code of `submit --wait --again`."""
        stub.states = states
        words = ["submit", "--host", stub.url, "--namespace", "lab", "--image", IMAGE, "--wait"]
        words += ["--again", str(again), "--token", TOKEN, "--data-version", "abc"]
        try:
            app(words, standalone_mode=False)
        except RunFailedError as error:
            return error.exit_code
        return 0

    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(time, "sleep", lambda _: None)

    def test_the_same_run_is_submitted_again_after_a_failure(self, stub: Stub) -> None:
        assert self.follow(stub, ["run-failed", "RUNNING", "run-succeeded"], 3) == 0
        first, second = stub.runs
        assert second["display_name"] == f"{first['display_name']} (2)"
        assert second["runtime_config"] == first["runtime_config"]
        assert second["experiment_id"] == first["experiment_id"]

    def test_the_same_steps_that_fail_at_once_again_are_not_tried_a_third_time(
        self, stub: Stub
    ) -> None:
        assert self.follow(stub, ["run-failed"], 9) == 4
        assert len(stub.runs) == 2

    def test_steps_that_fail_late_are_tried_as_often_as_asked_for(
        self, stub: Stub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipelines.steps.QUICK", timedelta(0))
        assert self.follow(stub, ["run-failed"], 3) == 4
        assert len(stub.runs) == 4

    def test_a_run_that_somebody_has_terminated_is_not_submitted_again(self, stub: Stub) -> None:
        assert self.follow(stub, ["run-terminated"], 3) == 4
        assert len(stub.runs) == 1

    def test_it_needs_wait(self, stub: Stub) -> None:
        words = ["submit", "--host", stub.url, "--image", IMAGE, "--again", "1", "--token", TOKEN]
        with pytest.raises(UsageError, match="--again: give --wait"):
            app([*words, "--data-version", "abc"], standalone_mode=False)
        assert stub.runs == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("preprocess_shards=0", "preprocess_shards=0: expected 1 or more"),
        ("finetune_shards=-1", "finetune_shards=-1: expected 0 or more"),
        ("gpus=3", r"batch_size \(16\) is no multiple of the 3 GPUs"),
        ("preprocess_shards=100", r"would grow to .* MB on the cluster \(100 shards"),
        ("params=seed: 1\nsed: 2\n", "sed: unknown key. Did you mean 'seed'"),
    ],
)
def test_what_would_fail_on_the_cluster_is_not_sent(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    monkeypatch.chdir(ROOT)
    words = ["submit", "--host", stub.url, "--image", IMAGE, "--token", TOKEN]
    with pytest.raises(UsageError, match=message):
        app([*words, "--data-version", "abc", "--param", setting], standalone_mode=False)
    assert stub.runs == []


class TestNoEntry:
    @pytest.mark.parametrize("token", [None, "wrong"])
    def test_a_wrong_token_is_said_at_once(self, stub: Stub, token: str | None) -> None:
        with pytest.raises(RefusedError, match=r"does not let us in \(401\)"):
            connect(stub, token)

    def test_a_token_file_is_read_again_with_every_call(self, stub: Stub, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text(TOKEN)
        client = cluster.Cluster(stub.url, "lab", token_file=path)
        stub.states = ["run-succeeded"]
        client.wait(RUN, compiled.read(compiled.COMMITTED), poll_s=0)
        path.write_text("expired")
        with pytest.raises(RefusedError):
            client.wait(RUN, compiled.read(compiled.COMMITTED), poll_s=0)
        with pytest.raises(UsageError, match="no such file"):
            cluster.Cluster(stub.url, "lab", token_file=tmp_path / "none")

    def test_a_cookie_opens_the_door(self, stub: Stub) -> None:
        stub.states = ["run-succeeded"]
        client = cluster.Cluster(stub.url, "lab", cookie=COOKIE)
        client.wait(RUN, compiled.read(compiled.COMMITTED), poll_s=0)
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
    stub.states, stub.asked = ["run-failed"], 0
    codes = {
        2: run("--param", "gpu=2"),
        4: run("--wait"),
        5: run(token="wrong"),
        6: run(host="http://127.0.0.1:9"),
    }
    assert {expected: ended[0] for expected, ended in codes.items()} == {2: 2, 4: 4, 5: 5, 6: 6}
    for _, text, _ in codes.values():
        assert len(text.strip().splitlines()[-1]) > 20
