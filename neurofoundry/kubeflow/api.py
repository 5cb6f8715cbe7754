"""The API of Kubernetes, as a pod asks it: four paths, by what Python has.

docs/decisions/kubernetes-client.md says why no client library does it.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from neurofoundry.errors import RefusedError, UnreachableError, UsageError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ANSWER_S = 30.0
"""Seconds in which the API server must answer."""

ADVICE = {
    401: "The token of the service account is not valid.",
    403: "Give the service account of the run the rights of docs/kubeflow-rbac.yaml.",
    404: "Is Kubeflow Trainer 2.2 or later installed?",
}


class Api:
    """The API of Kubernetes, for one namespace. Raises RefusedError and UnreachableError."""

    def __init__(
        self,
        url: str,
        namespace: str,
        account: Path,
        *,
        poll_s: float = 5.0,
        patience_s: float = 300.0,
    ) -> None:
        self.url = url
        self.namespace = namespace
        self.poll_s = poll_s
        """Seconds between two requests for the same, and of silence that end a log."""
        self.patience_s = patience_s
        """Seconds in which a server that does not answer is asked again."""
        self._token = account / "token"
        authority = account / "ca.crt"
        self._tls = ssl.create_default_context(cafile=authority) if authority.exists() else None

    @classmethod
    def of_this_pod(cls) -> Api:
        """Use what Kubernetes tells every pod. Raises UsageError outside a cluster."""
        try:
            host, port = (os.environ[f"KUBERNETES_SERVICE_{name}"] for name in ("HOST", "PORT"))
            namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
        except (KeyError, OSError) as error:
            raise UsageError(
                f"Several nodes need a cluster, and this is no pod of one ({error}). On one "
                "machine, run `neurofoundry pretrain`; in the pipeline, leave nodes at 1."
            ) from error
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", namespace, SERVICE_ACCOUNT)

    def train_jobs(self, name: str = "") -> str:
        """Return the path of the TrainJobs, or of one."""
        jobs = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{self.namespace}/trainjobs"
        return f"{jobs}/{name}" if name else jobs

    def pods(self, name: str = "") -> str:
        """Return the path of the pods, or of one."""
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        return f"{pods}/{name}" if name else pods

    def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """Send a request, again while the server does not answer; return the answer's JSON."""
        started = time.monotonic()
        while True:
            try:
                with self._open(method, path, body, query, timeout=ANSWER_S) as answer:
                    return json.loads(answer.read())
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() - started > self.patience_s:
                    raise UnreachableError(
                        f"{self.url}: no answer ({error}). The TrainJob, if there is one, goes on, "
                        "and the retry of this step follows it."
                    ) from error
                time.sleep(self.poll_s)

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """Yield the lines of a log, until it ends or is silent."""
        with (
            suppress(OSError, http.client.HTTPException),
            self._open("GET", path, None, query, timeout=self.poll_s) as answer,
        ):
            for line in answer:
                yield line.decode(errors="replace").rstrip("\n")

    def _open(
        self, method: str, path: str, body: Any, query: Mapping[str, str], *, timeout: float
    ) -> http.client.HTTPResponse:
        request = urllib.request.Request(
            f"{self.url}{path}{'?' if query else ''}{urllib.parse.urlencode(query)}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            # The kubelet replaces the token now and then, in the same file.
            headers={"Authorization": f"Bearer {self._token.read_text().strip()}"},
        )
        if body is not None:
            request.add_header("Content-Type", "application/json")
        try:
            answer: http.client.HTTPResponse = urllib.request.urlopen(
                request, timeout=timeout, context=self._tls
            )
        except urllib.error.HTTPError as error:
            raise _refusal(f"{method} {path}", error) from error
        return answer


def _refusal(request: str, error: urllib.error.HTTPError) -> Exception:
    """Return what to raise: a server that is busy counts as one that does not answer."""
    text = error.read().decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]
    if error.code >= 500 or error.code == 429:
        return ConnectionError(f"{error.code}: {text}")
    advice = ADVICE.get(error.code, "Does the version of Kubeflow Trainer fit?")
    return RefusedError(
        f"{request} was refused ({error.code}): {text.strip()}. {advice}", error.code
    )
