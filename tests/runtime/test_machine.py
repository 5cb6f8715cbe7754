"""What a process may use of its machine, with the files of control groups and with real masks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neurofoundry.runtime import machine

GIB = 2**30


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores with 100 GiB free, whose control groups are in the folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.delenv(machine.CORES, raising=False)
    for name in ("CGROUPS", "MEMBERSHIP", "MEMORY"):
        monkeypatch.setattr(machine, name, tmp_path / name)
    (tmp_path / "MEMORY").write_text(
        f"MemTotal: {128 * 2**20} kB\nMemAvailable:   {100 * 2**20} kB\nHugePages_Total: 0\n"
    )
    return tmp_path


def write(node: Path, membership: str, **files: str) -> None:
    (node / "MEMBERSHIP").write_text(membership)
    for name, text in files.items():
        path = node / "CGROUPS" / name.replace("__", "/").replace("--", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_control_groups_it_is_the_whole_machine(node: Path) -> None:
    assert (machine.cores(), machine.memory()) == (64, 100 * GIB)


def test_a_quota_of_version_2_counts_wherever_above_it_stands(node: Path) -> None:
    write(
        node, "0::/pod/main\n", **{"pod/cpu.max": "350000 100000\n", "pod/main/cpu.max": "max 1\n"}
    )
    assert machine.cores() == 4  # a part of a core is one
    write(node, "0::/pod/main\n", **{"pod/memory.max": "max\n", "memory.max": f"{8 * GIB}\n"})
    assert machine.memory() == 8 * GIB


def test_a_container_sees_its_own_group_at_the_top(node: Path) -> None:
    """Of version 1, and named as on the host."""
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": f"{4 * GIB}\n",
    }
    write(node, "4:memory:/kubepods/pod1\n2:cpu,cpuacct:/kubepods/pod1\n", **files)
    assert (machine.cores(), machine.memory()) == (2, 4 * GIB)
    none = {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": f"{2**63}\n"}
    write(node, "4:memory:/x\n2:cpu,cpuacct:/x\n", **none)
    assert (machine.cores(), machine.memory()) == (64, 100 * GIB)


def test_a_pod_uses_what_it_asks_for(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.CORES, "8")
    assert machine.cores() == 8
    for few in ("0.5", "-inf"):
        monkeypatch.setenv(machine.CORES, few)
        assert machine.cores() == 1
    monkeypatch.setenv(machine.CORES, "200")
    assert machine.cores() == 64


def test_memory_bounds_workers(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 workers of 0.8 GB each would be killed in a pod of 32 GiB."""
    assert machine.workers(GIB) == 64
    write(node, "0::/\n", **{"memory.max": f"{32 * GIB}"})
    assert machine.workers(GIB) == 31
    write(node, "0::/\n", **{"memory.max": f"{GIB // 2}"})
    assert machine.workers(GIB) == 1


def test_here_and_now() -> None:
    assert 1 <= machine.cores() <= len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.memory() <= total


def test_a_process_that_is_bound_to_a_core_has_one() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from neurofoundry.runtime import machine; print(machine.cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
