from __future__ import annotations

from pathlib import Path

import pytest

from neurofoundry.errors import RefusedError, UnreachableError, UsageError
from neurofoundry.kubeflow.api import Api
from tests.support.kubernetes import JOBS, PODS, Cluster


def test_the_token_is_read_again_with_every_request(
    cluster: Cluster, api: Api, account: Path
) -> None:
    assert api.ask("GET", api.pods("launcher"))
    cluster.token = "another-token"
    (account / "token").write_text(cluster.token)
    assert api.ask("GET", api.pods("launcher"))
    cluster.token = "a third"
    with pytest.raises(RefusedError, match=r"\(401\).*service account is not valid"):
        api.ask("GET", api.pods("launcher"))


@pytest.mark.parametrize(
    ("code", "message"),
    [(403, "rights of docs/kubeflow-rbac.yaml"), (404, "Is Kubeflow Trainer"), (422, "wants")],
)
def test_a_refusal_is_said_with_what_fixes_it(
    cluster: Cluster, api: Api, code: int, message: str
) -> None:
    cluster.fails = [code]
    with pytest.raises(RefusedError, match=message) as error:
        api.ask("POST", api.train_jobs(), {})
    assert error.value.status == code
    assert cluster.asked == [("POST", JOBS)]


def test_a_server_that_is_busy_is_asked_again(cluster: Cluster, api: Api) -> None:
    cluster.fails = [503, 429]
    assert api.ask("GET", api.pods("launcher"))
    assert cluster.asked == [("GET", f"{PODS}/launcher")] * 3


def test_a_server_that_does_not_answer_is_given_up_in_the_end(cluster: Cluster, api: Api) -> None:
    api.patience_s = 0.2
    cluster.fails = [503] * 1000
    with pytest.raises(UnreachableError, match=r"no answer \(503: as the test wants it\)"):
        api.ask("GET", api.pods("launcher"))
    assert len(cluster.asked) > 2


def test_a_log_ends_where_it_is_silent(cluster: Cluster, api: Api) -> None:
    cluster.logs["first"] = ["2026-01-01T00:00:01Z a", "2026-01-01T00:00:02Z b"]
    cluster.silent, api.poll_s = True, 0.5
    lines = api.lines(f"{api.pods('first')}/log", container="node", follow="true")
    assert list(lines) == ["a", "b"]


def test_outside_a_cluster_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UsageError, match="this is no pod of one"):
        Api.of_this_pod()
