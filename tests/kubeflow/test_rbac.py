"""docs/kubeflow-rbac.yaml grants what a step asks the API for, and nothing else."""

from __future__ import annotations

import pytest

from tests.support.rights import Call, allows, documents

TRAINER = "trainer.kubeflow.org"

CALLS = {
    # Kubeflow Pipelines 2.17, backend/src/v2: config/env.go, FromConfigMap (the secret's name is
    # there, too), and objectstore/object_store.go, getS3BucketCredential. A real API server refused
    # each in turn.
    "the driver reads where artifacts are stored": Call("", "configmaps", "get", "kfp-launcher"),
    "the launcher reads the keys of that storage": Call(
        "", "secrets", "get", "mlpipeline-minio-artifact"
    ),
    # Argo Workflows: workflow/executor/taskresult.go, createTaskResult and patchTaskResult.
    "Argo's executor reports a result": Call("argoproj.io", "workflowtaskresults", "create"),
    "Argo's executor completes a result": Call("argoproj.io", "workflowtaskresults", "patch"),
    # Ours: neurofoundry/kubeflow/trainjob.py.
    "_create": Call(TRAINER, "trainjobs", "create"),
    "_create, _follow": Call(TRAINER, "trainjobs", "get"),
    "_delete": Call(TRAINER, "trainjobs", "delete"),
    "owner_of_this_run": Call("", "pods", "get"),
    "_pods": Call("", "pods", "list"),
    "_print_log": Call("", "pods/log", "get"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_that_a_step_makes_is_allowed(call: Call) -> None:
    assert allows(call)


def test_no_call_is_allowed_that_no_step_makes() -> None:
    granted = {
        (group, resource, verb)
        for rule in documents()["Role"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {call[:3] for call in CALLS.values()}
    # Of the secrets of a namespace it is one.
    assert not allows(Call("", "secrets", "get", "wandb"))
    assert not allows(Call("", "secrets", "list"))


def test_the_account_of_the_documentation_is_bound_to_the_role() -> None:
    objects = documents()
    assert set(objects) == {"ServiceAccount", "Role", "RoleBinding"}
    account, binding = objects["ServiceAccount"], objects["RoleBinding"]
    assert binding["roleRef"]["name"] == objects["Role"]["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
