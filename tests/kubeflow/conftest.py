from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neurofoundry.kubeflow.api import Api
from tests.support.kubernetes import NAMESPACE, Cluster, serve


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with serve(Cluster()) as stub:
        yield stub


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What Kubernetes mounts into a pod for its service account."""
    (tmp_path / "token").write_text("a-valid-token\n")
    (tmp_path / "namespace").write_text(NAMESPACE)
    return tmp_path


@pytest.fixture
def api(cluster: Cluster, account: Path) -> Api:
    return Api(cluster.url, NAMESPACE, account, poll_s=0.05)
