"""A Kubeflow cluster: start runs, follow them, upload and schedule the pipeline.

kfp's client checks no argument, turns caching off only for the outermost steps, and hides a
refused login behind tracebacks; what is sent is therefore checked and written here.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import requests
import urllib3
import yaml
from kfp.client import ServiceAccountTokenVolumeCredentials
from requests import exceptions

from neurofoundry.errors import (
    RefusedError,
    RunFailedError,
    UnreachableError,
    UsageError,
)
from neurofoundry.kubeflow.schemas import DvcFile
from neurofoundry.params import load
from neurofoundry.runtime.log import LOGGER
from pipelines import compiled, steps

ANSWER_S = 4
"""Seconds in which a cluster must accept a connection, and again in which it must answer."""

POLL_S = 10
"""Seconds between two requests for the state of a run."""

PATIENCE = 30
"""Requests in a row that may go unanswered, such as while a cluster is updated."""


def by_digest(image: str) -> str:
    """Return ``image`` if it names its content. Raises UsageError."""
    if not re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", image):
        raise UsageError(
            f"--image {image}: expected a digest (…@sha256:…), which `docker push` prints. A tag "
            "may be moved, and steps of another image would be taken from the cache."
        )
    return image


def data_version(path: Path) -> str:
    """Return the version of the raw data that data.dvc names. Raises UsageError."""
    try:
        return load(path, DvcFile).outs[0].md5
    except UsageError as error:
        raise UsageError(
            f"{error}\nThere is no data version to take from it: give --data-version, the folder "
            "of the raw data in STORE/data."
        ) from error


def git_commit() -> str:
    """Return the commit of this checkout. Raises UsageError."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError("No git commit to name the version by: give --version.") from error
    return done.stdout.strip()


def without_cache(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pipeline with every step run anew, in loops and conditions too."""
    documents = copy.deepcopy(documents)
    for task in compiled.tasks(documents):
        task["cachingOptions"] = {}
    return documents


class StepsFailedError(RunFailedError):
    """A run has not ended well."""

    def __init__(
        self, message: str, *, terminated: bool = False, quick: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.terminated = terminated
        """Whether somebody has stopped it."""
        self.quick = quick
        """The steps that failed as soon as steps do whose parameters or files are wrong."""

    def may_pass(self, before: StepsFailedError | None) -> bool:
        """Say whether the same run may end better, after the failure ``before`` if any.

        The API says nothing of exit codes. A node that is taken away seldom fails the same steps
        within minutes of their start twice; a wrong parameter always does.
        """
        return not self.terminated and not (
            self.quick and before is not None and before.quick == self.quick
        )


class Cluster:
    """The API of Kubeflow Pipelines at ``host``. Raises RefusedError and UnreachableError."""

    def __init__(
        self,
        host: str,
        namespace: str | None,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        cookie: str | None = None,
    ) -> None:
        self.host = host.rstrip("/")
        self.namespace = namespace
        if token_file and not token_file.is_file():
            raise UsageError(f"--token-file {token_file}: there is no such file.")
        secret = token or (token_file.read_text().strip() if token_file else None)
        self._check_access(secret, cookie)
        credentials = (
            ServiceAccountTokenVolumeCredentials(path=str(token_file)) if token_file else None
        )
        with self._errors():
            self._client = kfp.Client(
                host=self.host,
                namespace=namespace or "kubeflow",
                existing_token=None if token_file else token,
                credentials=credentials,
                cookies=cookie,
            )

    def submit(
        self,
        documents: list[dict[str, Any]],
        values: Mapping[str, Any],
        *,
        experiment: str,
        name: str,
        service_account: str | None,
        cache: bool,
    ) -> str:
        """Start a run; return its id."""
        with self._sending(documents, cache=cache) as package:
            run = self._client.create_run_from_pipeline_package(
                str(package),
                arguments=dict(values),
                run_name=name,
                experiment_name=experiment,
                namespace=self.namespace,
                service_account=service_account,
            )
        return str(run.run_id)

    def url(self, run: str) -> str:
        """Return the address of the page of a run."""
        return f"{self.host}/#/runs/details/{run}"

    def wait(
        self,
        run: str,
        documents: list[dict[str, Any]],
        given: Mapping[str, Any] | None = None,
        *,
        methods: Sequence[str] = (),
        poll_s: float = POLL_S,
    ) -> None:
        """Follow a run and say what each step does. Raises StepsFailedError.

        ``given`` are the run's parameters, ``methods`` those of pretraining. Silence and answers
        of 5xx and 429 are borne.
        """
        told = Told(documents, given or {}, methods)
        missed = 0
        while True:
            try:
                with self._errors():
                    answer = self._client.get_run(run)
            except UnreachableError as error:
                missed += 1
                if missed > PATIENCE:
                    raise
                LOGGER.warning("%s The run goes on.", error)
            else:
                missed = 0
                nodes = getattr(answer.run_details, "task_details", None) or []
                told.tell(nodes, self._kubectl)
                if self._ended(run, answer, nodes, told):
                    return
            time.sleep(poll_s)

    def _kubectl(self, *words: str) -> str:
        space = f" --namespace {self.namespace}" if self.namespace else ""
        return f"kubectl {words[0]}{space} {' '.join(words[1:])}"

    def _ended(self, run: str, answer: Any, nodes: Sequence[Any], told: Told) -> bool:
        """Say whether a run has ended well. Raises StepsFailedError if it has not."""
        state = str(answer.state or "PENDING")
        if state == "SUCCEEDED":
            LOGGER.info("The run has succeeded: %s", self.url(run))
            return True
        if state not in ("FAILED", "CANCELED", "SKIPPED"):
            return False
        history = [str(entry.state) for entry in answer.state_history or ()]
        if state == "CANCELED" or "CANCELING" in history:
            raise StepsFailedError(
                f"The run was terminated: {self.url(run)}. Submit again to go on: finished steps "
                "are taken over, and one that was stopped continues.",
                terminated=True,
            )
        failed = [step for step in told.steps(nodes) if step.state == "failed"]
        where = [f"{step.title} (log: {self._log(step)})" for step in failed]
        where = where or [f"{name}, before its step began" for name in steps.failed_before(nodes)]
        raise StepsFailedError(
            f"The run has failed{' in ' if where else ''}{', '.join(where)}: {self.url(run)}. "
            "Fix what the log says and submit again: finished steps are taken over, and one that "
            "was stopped continues.",
            quick=tuple(sorted(step.title for step in failed if step.lasted < steps.QUICK)),
        )

    def _log(self, step: steps.Step) -> str:
        return (
            f"`{self._kubectl('logs', '--container main', step.pod)}`" if step.pod else "its page"
        )

    def upload(self, package: Path, version: str) -> str:
        """Upload a pipeline under its name, or a version of it; return the name."""
        name = str(compiled.read(package)[0]["pipelineInfo"]["name"])
        with self._errors():
            known = self._client.get_pipeline_id(name)
            if known is None:
                self._client.upload_pipeline(str(package), name, namespace=self.namespace)
                known = self._client.get_pipeline_id(name)
            self._client.upload_pipeline_version(str(package), version, pipeline_id=known)
        return name

    def schedule(
        self,
        documents: list[dict[str, Any]],
        values: Mapping[str, Any],
        *,
        experiment: str,
        name: str,
        cron: str,
        service_account: str | None,
        cache: bool,
    ) -> None:
        """Start runs on a schedule, one at a time, and none for the times that were missed."""
        with self._sending(documents, cache=cache) as package:
            group = self._client.create_experiment(experiment, namespace=self.namespace)
            self._client.create_recurring_run(
                experiment_id=group.experiment_id,
                job_name=name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=dict(values),
                pipeline_package_path=str(package),
                service_account=service_account,
            )

    def _check_access(self, token: str | None, cookie: str | None) -> None:
        """Ask whether the API is there: kfp's client takes long to say that it is not."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {"Cookie": cookie} if cookie else {}
        try:
            answer = requests.get(
                f"{self.host}/apis/v2beta1/healthz",
                headers=headers,
                timeout=ANSWER_S,
                allow_redirects=False,
            )
        except (exceptions.MissingSchema, exceptions.InvalidSchema, exceptions.InvalidURL) as error:
            raise UsageError(f"--host {self.host}: expected an address with https://.") from error
        except requests.RequestException as error:
            raise UnreachableError(
                f"--host {self.host}: no answer ({type(error).__name__}). Is the address right, "
                "and does the port forwarding or the VPN run?"
            ) from error
        self._check_status(answer.status_code)
        try:
            answer.json()
        except ValueError as error:
            raise self._not_there("a page of something else") from error

    def _check_status(self, code: int, reason: str = "") -> None:
        if code in (401, 403) or 300 <= code < 400:
            raise RefusedError(
                f"{self.host} does not let us in ({code}). Give a valid --token, --token-file or "
                "--cookie; the account needs the rights of docs/kubeflow.md in the namespace.",
                code,
            )
        if code == 404 and not reason:
            raise self._not_there("404")
        answer = f"{self.host} answers {code}{f': {reason}' if reason else ''}."
        if code >= 500 or code == 429:
            raise UnreachableError(answer)
        if code >= 400:
            raise RefusedError(answer, code)

    def _not_there(self, found: str) -> UnreachableError:
        return UnreachableError(
            f"--host {self.host}: no Kubeflow Pipelines there ({found}). On a cluster with a "
            "dashboard its address ends in /pipeline."
        )

    @contextlib.contextmanager
    def _sending(self, documents: list[dict[str, Any]], *, cache: bool) -> Iterator[Path]:
        """Write the pipeline to a file, as kfp's client wants one."""
        with tempfile.TemporaryDirectory() as folder, self._errors():
            path = Path(folder) / "pipeline.yaml"
            path.write_text(yaml.safe_dump_all(documents if cache else without_cache(documents)))
            yield path

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Silence kfp's client, and turn its errors into ours."""
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except kfp_server_api.ApiException as error:
            reason = str(error.reason)
            with contextlib.suppress(ValueError, TypeError):
                body = json.loads(error.body)
                # Uploads are refused in other words than all else.
                reason = body.get("message") or body.get("error_message") or reason
            self._check_status(int(error.status or 500), reason)
            raise
        except (urllib3.exceptions.HTTPError, requests.RequestException) as error:
            raise UnreachableError(
                f"{self.host}: no answer any more ({type(error).__name__})."
            ) from error


class Told:
    """What has been said of a run, so that each thing is said once."""

    def __init__(
        self, documents: list[dict[str, Any]], given: Mapping[str, Any], methods: Sequence[str]
    ) -> None:
        self._names = steps.names(documents)
        self._documents = documents
        self._given = given
        self._items = {
            "preprocess a shard": _shards(documents, given, "preprocess_shards"),
            "pretrain on nodes": methods,
            "pretrain": methods,
            "finetune a shard": _shards(documents, given, "finetune_shards"),
        }
        self._lines: dict[str, str] = {}
        self._waiting: set[str] = set()

    def steps(self, nodes: Sequence[Any]) -> list[steps.Step]:
        """Return the steps that have begun."""
        return steps.read(nodes, self._names, self._items)

    def tell(self, nodes: Sequence[Any], kubectl: Callable[..., str]) -> None:
        """Log what has changed since the last time."""
        begun = self.steps(nodes)
        for line in steps.changes(begun, self._lines, self._items):
            LOGGER.info("%s", line)
        for step in steps.long_waiting(begun):
            if step.title not in self._waiting:
                self._waiting.add(step.title)
                machine = steps.machine_of(self._documents, step.name, self._given)
                LOGGER.warning(
                    "%s: has waited for a machine for %.0f minutes (%s). %s says why.",
                    step.title,
                    steps.PATIENT.total_seconds() / 60,
                    machine,
                    kubectl("describe pod", step.pod)
                    if step.pod
                    else kubectl("get events", "--field-selector reason=FailedScheduling"),
                )


def _shards(documents: list[dict[str, Any]], given: Mapping[str, Any], name: str) -> list[str]:
    """Return the shards of a run, in the words of `configure`."""
    declared = compiled.parameters(documents).get(name, {})
    number = int(given.get(name, declared.get("defaultValue", 0)))
    return [f"{index}/{number}" for index in range(1, number + 1)]
