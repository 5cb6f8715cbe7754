"""A Kubeflow cluster: start runs, follow them, upload and schedule the pipeline.

kfp's client checks no argument, turns caching off only for the outermost steps, and hides a
refused login behind tracebacks; what is sent is therefore checked and written here.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import json
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import requests
import urllib3
import yaml
from kfp.client import ServiceAccountTokenVolumeCredentials
from requests import exceptions
from rich.console import Console

from neurofoundry.errors import (
    NeurofoundryError,
    RefusedError,
    RunFailedError,
    UnreachableError,
    UsageError,
)
from neurofoundry.kubeflow.schemas import DvcFile
from neurofoundry.params import load
from pipelines import compiled

ANSWER_S = 4
"""Seconds in which a cluster must accept a connection, and again in which it must answer."""

POLL_S = 10
"""Seconds between two requests for the state of a run."""

PATIENCE = 30
"""Requests in a row that may go unanswered, such as while a cluster is updated."""

NAME = "neurofoundry"
"""The name of the pipeline in Kubeflow."""


JSON_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a JSON list"),
    "STRUCT": ((dict,), "a JSON object"),
}
"""Type of a pipeline's parameter, other than a text, to types of JSON and what they are called."""


def arguments(documents: list[dict[str, Any]], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the ``given`` texts as the types that the pipeline declares. Raises UsageError."""
    declared = compiled.parameters(documents)
    for name in given:
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UsageError(
                f"--param {name}: the pipeline has no such parameter.{hint} "
                f"It has {', '.join(sorted(declared))}."
            )
    missing = [
        name
        for name, kind in declared.items()
        if name not in given and "defaultValue" not in kind and not kind.get("isOptional")
    ]
    if missing:
        raise UsageError(f"The pipeline needs {', '.join(missing)}: give --param {missing[0]}=…")
    return {name: _typed(name, text, declared[name]) for name, text in given.items()}


def _typed(name: str, text: str, declared: Mapping[str, Any]) -> Any:
    kind = declared["parameterType"]
    if kind == "STRING":
        return text
    types, words = JSON_TYPES[kind]
    value = None
    with contextlib.suppress(ValueError):
        value = json.loads(text)
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "BOOLEAN"):
        raise UsageError(f"--param {name}={text}: expected {words}.")
    return value


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


def check_cron(text: str) -> str:
    """Return a schedule if it has the six fields that Kubeflow reads. Raises UsageError."""
    if len(text.split()) != 6:
        raise UsageError(
            f"--cron '{text}': expected six fields, seconds first: '0 0 2 * * *' is daily at two."
        )
    return text


def without_cache(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pipeline with every step run anew, in loops and conditions too."""
    documents = copy.deepcopy(documents)
    for task in compiled.tasks(documents):
        task["cachingOptions"] = {}
    return documents


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

    def wait(self, run: str, *, poll_s: float = POLL_S) -> None:
        """Follow a run and say what each step does. Raises RunFailedError."""
        console = Console(stderr=True)
        told: dict[str, str] = {}
        missed = 0
        with console.status("waiting for the run") as status:
            while True:
                try:
                    with self._errors():
                        answer = self._client.get_run(run)
                except UnreachableError:
                    missed += 1
                    if missed > PATIENCE:
                        raise
                    status.update("no answer; the run goes on")
                else:
                    missed = 0
                    tasks = getattr(answer.run_details, "task_details", None) or []
                    for line in _changes(tasks, told):
                        console.print(line)
                    state = str(answer.state or "PENDING")
                    running = [task.display_name for task in tasks if task.state == "RUNNING"]
                    status.update(", ".join(running) or state.lower())
                    if self._ended(run, state, tasks):
                        console.print(f"{state.lower():>10}  {self.url(run)}")
                        return
                time.sleep(poll_s)

    def _ended(self, run: str, state: str, tasks: Sequence[Any]) -> bool:
        """Say whether a run has ended well. Raises RunFailedError if it has not."""
        if state in ("FAILED", "CANCELED", "SKIPPED"):
            failed = [task.display_name for task in tasks if task.state == "FAILED"]
            where = f" in {', '.join(failed)}" if failed else ""
            raise RunFailedError(
                f"The run has {state.lower()}{where}: {self.url(run)}. Fix what the log of the "
                "step says and submit again; finished steps are taken over."
            )
        return state == "SUCCEEDED"

    def upload(self, package: Path, version: str) -> None:
        """Upload the pipeline under its name, or a version of it."""
        with self._errors():
            known = self._client.get_pipeline_id(NAME)
            if known is None:
                self._client.upload_pipeline(str(package), NAME, namespace=self.namespace)
                known = self._client.get_pipeline_id(NAME)
            self._client.upload_pipeline_version(str(package), version, pipeline_id=known)

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
        if code in (502, 503, 504):
            raise UnreachableError(f"{self.host}: no answer from behind it ({code}).")
        answer = f"{self.host} answers {code}{f': {reason}' if reason else ''}."
        if code >= 500:
            raise NeurofoundryError(answer)
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
                reason = json.loads(error.body)["message"]
            self._check_status(int(error.status or 500), reason)
            raise
        except (urllib3.exceptions.HTTPError, requests.RequestException) as error:
            raise UnreachableError(
                f"{self.host}: no answer any more ({type(error).__name__})."
            ) from error


def _changes(tasks: Sequence[Any], told: dict[str, str]) -> Iterator[str]:
    """Yield a line for each task whose state is not the one in ``told``, and note it there."""
    for task in tasks:
        state = str(task.state or "")
        if state and told.get(task.task_id) != state:
            told[task.task_id] = state
            yield f"{state.lower():>10}  {task.display_name}"
