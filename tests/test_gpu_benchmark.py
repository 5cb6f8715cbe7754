"""benchmarks/gpu.py at toy size: all that it needs is there on the day that a GPU is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(SCRIPT), "--toy", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers: dict[str, dict[str, Any]] = json.loads((out / "gpu.json").read_text())
    rows = (out / "gpu.md").read_text().splitlines()[2:]
    assert len(rows) == sum(len(part) for part in numbers.values())
    return numbers


def test_convolutions_are_right_where_they_can_be(found: dict[str, dict[str, Any]]) -> None:
    assert 0 < found["convolutions"]["fp32_features_error"] < 1e-4
    assert (
        found["convolutions"]["fp32_features_error"] < found["convolutions"]["bf16_features_error"]
    )


def test_views_made_together_are_those_made_one_by_one(found: dict[str, dict[str, Any]]) -> None:
    for preset in ("robust", "paper"):
        assert found["views"][f"{preset}_largest_difference"] < 1e-4
        assert found["views"][f"{preset}_views_per_s"] > 1


def test_a_resumed_run_is_the_same_to_the_bit_on_a_cpu(found: dict[str, dict[str, Any]]) -> None:
    assert found["resume"] == {
        "again_largest_difference": 0.0,
        "resumed_largest_difference": 0.0,
    }


def test_rates_are_rates(found: dict[str, dict[str, Any]]) -> None:
    assert found["steps"]["fp32_scans_per_s"] > 0.1
    assert found["registration"]["together_per_s"] > 0
    assert found["machine"]["device"]


def test_a_part_that_takes_too_long_leaves_its_reason() -> None:
    assert gpu.run_part("end_to_end", seconds=0.1)["failed"] == "not done within 0 s"
    assert gpu.run_part("end_to_end", seconds=0) == {"failed": "no time was left"}


def test_a_part_that_fails_leaves_its_reason_and_the_numbers_that_it_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh
echo '{"one": 1}'; echo 'not a number'; echo '{"two": 2}'
echo 'OutOfMemoryError: 139 GiB' >&2
exit 1
""")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    found = gpu.run_part("views", seconds=600)
    assert found.pop("wall_s") > 0
    assert found == {"one": 1, "two": 2, "failed": "OutOfMemoryError: 139 GiB"}


def test_a_part_that_does_not_exist_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--parts", "views,nothing"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "no part nothing" in capsys.readouterr().err
