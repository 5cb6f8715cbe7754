"""How a run ended, in words: what came out of it, or which step failed and how to go on.

It is told from the notes of the run's steps (journal.py), as the states of Kubeflow say neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neurofoundry.kubeflow.api import SERVICE_ACCOUNT
from neurofoundry.kubeflow.journal import Note, run_name
from neurofoundry.runtime.files import read_json
from neurofoundry.runtime.store import read_circumstances

LAST = "promote"
"""The step that always runs, after all others."""

MEANING = {
    1: "a defect of neurofoundry",
    2: "a parameter or a file of yours, or a store that is full",
    3: "the input data",
    5: "a cluster that refuses",
    6: "a cluster that does not answer",
}
GO_ON = (
    "Submit the same run again once that is mended: finished steps are taken over, and one that "
    "was stopped continues."
)


def describe(notes: Sequence[Note]) -> str:
    """Say it as Markdown."""
    done = [note for note in notes if note.step == LAST and note.exit_code == 0]
    return "\n".join(_succeeded(done[0]) if done else _failed(notes)) + "\n"


def _succeeded(last: Note) -> Iterator[str]:
    evaluation = Path(last.facts["evaluation"])
    record = read_json(evaluation / "stage.json")
    yield "# The run has succeeded"
    yield ""
    yield from _headlines(record["summary"])
    yield f"- evaluation: `{evaluation}`, with report.html, model_card.md, and tables"
    if "model" in last.facts:
        yield f"- promoted: `{last.facts['model']}`"
    else:
        yield f"- no model is promoted: {last.facts['reason']}"
    recorded = read_circumstances(evaluation).get("tracking_run")
    group = f"{recorded}, in the group {run_name()}" if recorded else "nothing was recorded"
    yield f"- W&B: {group}"


def _headlines(summary: dict[str, Any]) -> Iterator[str]:
    """Yield a table of the primary metrics that have an interval (evaluate/report/headline.py)."""
    names = [name for name in summary if f"{name}_low" in summary]
    if not names:
        return
    yield "| task, metric, split, initialization | value | 95 % interval |"
    yield "|---|---|---|"
    for name in names:
        ends = (name, f"{name}_low", f"{name}_high")
        value, low, high = (_number(summary.get(end)) for end in ends)
        yield f"| {name} | {value} | {low} to {high} |"
    yield ""


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _failed(notes: Sequence[Note]) -> Iterator[str]:
    failed = [note for note in notes if note.exit_code]
    stopped = [note for note in notes if note.exit_code is None and note.step != "summarize"]
    yield "# The run has not come to its end"
    yield ""
    for note in failed:
        meaning = MEANING.get(note.exit_code or 0, "killed by a signal")
        yield f"- `{note.step}` failed (exit code {note.exit_code}: {meaning}): {_log(note)}"
    for note in stopped:
        yield (
            f"- `{note.step}` was stopped while it ran, as when memory or its hours run out, when "
            f"its node is taken away, or when another step has failed: {_log(note)}"
        )
    if not failed and not stopped:
        yield (
            "- no step has failed that had begun: the pod of the next could not start. "
            f"`kubectl get events{_namespace()} --field-selector type=Warning` says why"
        )
    if done := [f"`{note.step}`" for note in notes if note.exit_code == 0]:
        yield f"- done: {', '.join(done)}"
    yield ""
    yield GO_ON


def _log(note: Note) -> str:
    return (
        f"`kubectl logs{_namespace()} --container main {note.pod}`" if note.pod else "see its log"
    )


def _namespace() -> str:
    path = SERVICE_ACCOUNT / "namespace"
    return f" --namespace {path.read_text().strip()}" if path.is_file() else ""
