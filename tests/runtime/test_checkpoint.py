from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from neurofoundry.errors import UsageError
from neurofoundry.runtime import checkpoint
from tests.support.disk import files_of_at_most


def state(step: int) -> dict[str, object]:
    return {"step": step, "weights": torch.full((1000,), float(step)), "history": [{"loss": 0.5}]}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    assert checkpoint.load(folder, made_of={}, code={}) is None
    for step in (8, 9, 10):
        checkpoint.save(folder, state(step), step=step, made_of={}, code={})
    loaded = checkpoint.load(folder, made_of={}, code={})
    assert loaded is not None
    assert loaded["step"] == 10
    assert loaded["history"] == [{"loss": 0.5}]
    assert torch.equal(loaded["weights"], torch.full((1000,), 10.0))
    assert [name[:14] for name in names(folder)] == ["step-000000009", "step-000000010"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped bit"])
def test_a_damaged_file_is_skipped_for_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path, state(1), step=1, made_of={}, code={})
    checkpoint.save(tmp_path, state(2), step=2, made_of={}, code={})
    newest = tmp_path / names(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    kept = {"cut": len(content) // 2, "empty": 0, "flipped bit": len(content)}[damage]
    newest.write_bytes(content[:kept])
    loaded = checkpoint.load(tmp_path, made_of={}, code={})
    assert loaded is not None
    assert loaded["step"] == 1
    assert newest.name in caplog.text


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1), step=1, made_of={}, code={})
    (tmp_path / ".step-000000002-0123456789abcdef.tmp.pt").write_bytes(b"the start of step 2")
    loaded = checkpoint.load(tmp_path, made_of={}, code={})
    assert loaded is not None
    assert loaded["step"] == 1
    checkpoint.save(tmp_path, state(3), step=3, made_of={}, code={})
    assert len(names(tmp_path)) == 2


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_the_old_checkpoint(
    tmp_path: Path,
) -> None:
    checkpoint.save(tmp_path, state(1), step=1, made_of={}, code={})
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        checkpoint.save(tmp_path, state(2), step=2, made_of={}, code={})
    loaded = checkpoint.load(tmp_path, made_of={}, code={})
    assert loaded is not None
    assert loaded["step"] == 1


def test_a_checkpoint_of_something_else_is_refused_and_the_difference_named(
    tmp_path: Path,
) -> None:
    made_of = {"data": "ab12", "pretrain": {"batch_size": 8, "simclr": {"temperature": 0.2}}}
    checkpoint.save(tmp_path, state(1), step=1, made_of=made_of, code={})
    assert checkpoint.load(tmp_path, made_of=made_of, code={}) is not None
    other = {"data": "ab12", "pretrain": {"batch_size": 4, "simclr": {"temperature": 0.2}}}
    with pytest.raises(UsageError) as caught:
        checkpoint.load(tmp_path, made_of=other, code={})
    message = str(caught.value)
    assert "pretrain.batch_size was 8, is 4." in message
    assert "temperature" not in message
    with pytest.raises(UsageError, match="data was ab12, is cd34"):
        checkpoint.load(tmp_path, made_of={**made_of, "data": "cd34"}, code={})
    with pytest.raises(UsageError, match="data was ab12, is not there"):
        checkpoint.load(tmp_path, made_of={"pretrain": made_of["pretrain"]}, code={})


def test_a_checkpoint_of_other_code_is_refused_unless_that_is_accepted_and_remembered(
    tmp_path: Path,
) -> None:
    then, now = {"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}
    checkpoint.save(tmp_path, state(1), step=1, made_of={}, code=then)
    same = checkpoint.load(tmp_path, made_of={}, code=then)
    assert same is not None
    assert same["code_changes"] == []
    with pytest.raises(UsageError, match=r"code: b, c, d changed .*--accept-code-change"):
        checkpoint.load(tmp_path, made_of={}, code=now)
    loaded = checkpoint.load(tmp_path, made_of={}, code=now, accept_code_change=True)
    assert loaded is not None
    assert loaded["code_changes"] == ["b", "c", "d"]
    checkpoint.save(tmp_path, loaded, step=2, made_of={}, code=now)
    loaded = checkpoint.load(tmp_path, made_of={}, code=now)
    assert loaded is not None
    assert loaded["code_changes"] == ["b", "c", "d"]
    with pytest.raises(UsageError, match="data was not there, is ab12"):
        checkpoint.load(tmp_path, made_of={"data": "ab12"}, code=now, accept_code_change=True)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    checkpoint.save(tmp_path, {"step": Bomb()}, step=1, made_of={}, code={})
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoint.load(tmp_path, made_of={}, code={})
    assert not (tmp_path / "exploded").exists()


def test_sigterm_sets_the_event_and_the_old_handler_returns() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with checkpoint.termination() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(timeout=5)
    assert signal.getsignal(signal.SIGTERM) is before
