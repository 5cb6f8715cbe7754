"""Weights & Biases: the only module that knows it.

Each stage is one run, grouped by pipeline run. Without an account runs are kept offline in
``wandb/``, and `wandb sync` sends them later. Nothing about the machine or a person is recorded,
and the stage goes on whatever happens to W&B or the network.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal

from neurofoundry.params import Section
from neurofoundry.runtime.log import LOGGER

if TYPE_CHECKING:
    import pandas as pd
    import wandb

INIT_SECONDS = 30
"""How long a server may take to answer before the run is kept offline."""

FINISH_SECONDS = 60
"""How long the end of a stage waits until all is sent; `wandb sync` sends the rest."""

STOP_SECONDS = 5
"""How long W&B's own process may take to end after SIGTERM."""

MOST_FAILURES = 3
"""Failures after which the stage records nothing more."""

ENCODER = ("encoder.safetensors", "plan.json")
"""Files of an encoder's artifact; subjects.tsv and images.tsv identify persons and are not sent."""

PRIVATE = ("path", "overrides", "template")
"""Parameters that name files."""


class TrackingParams(Section):
    """Where experiments are recorded."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an API key, or after `wandb login`; offline without."""
    project: str = "neurofoundry"


@dataclass
class Tracker:
    """Records the numbers, tables, pictures and artifacts of a stage; without a run, nothing."""

    _run: wandb.Run | None = None
    name: str = ""
    """Project and id, by which the run is found online or after `wandb sync`."""
    _first: int = 0
    """The first step that was not recorded before a resume."""
    _steps: _Steps | None = None
    _failures: int = 0

    @property
    def records(self) -> bool:
        """Whether anything is recorded."""
        return self._run is not None

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Record values at a step, unless it was recorded before a resume."""
        if self._run and step >= self._first:
            self._do(lambda run: self._log(run, values, step))

    def _log(self, run: wandb.Run, values: Mapping[str, Any], step: int) -> None:
        if self._steps:
            # Written first, so that a kill between the two loses a step and repeats none.
            self._steps.write(step)
        run.log(dict(values), step=step)

    def pictures(self, name: str, paths: Sequence[Path], *, step: int) -> None:
        """Record the pixels of PNG files, without file names and metadata, under one name."""
        if self._run:
            import wandb

            self.log({name: [wandb.Image(_pixels(path)) for path in paths]}, step=step)

    def figure(self, name: str, svg: str, *, step: int) -> None:
        """Record a drawing (SVG)."""
        if self._run:
            import wandb

            self.log({name: wandb.Html(svg, inject=False)}, step=step)

    def table(self, name: str, table: pd.DataFrame, *, step: int) -> None:
        """Record a table; missing values become null."""
        if self._run:
            import wandb

            columns: list[str | int] = [str(column) for column in table.columns]
            rows: list[Any] = table.astype(object).where(table.notna(), None).values.tolist()
            self.log({name: wandb.Table(columns, rows, allow_mixed_types=True)}, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the numbers by which runs are compared."""
        self._do(lambda run: run.summary.update(dict(values)))

    def config(self, values: Mapping[str, Any]) -> None:
        """Record parameters that were not known when the run began."""
        self._do(lambda run: run.config.update(public(values), allow_val_change=True))

    def produced(self, name: str, kind: str, folder: Path, files: Sequence[str]) -> None:
        """Record files as an artifact that this run has produced."""
        self._artifact(name, kind, folder, files, produced=True)

    def used(self, name: str, kind: str, folder: Path, files: Sequence[str]) -> None:
        """Record that this run uses the version of an artifact that has the same content."""
        self._artifact(name, kind, folder, files, produced=False)

    def finish(self, exit_code: int) -> None:
        """Send what is left, for at most ``FINISH_SECONDS``."""
        if self._run is None:
            return
        # W&B's own limit does not hold while it repeats a request that gets no answer.
        run, stopped = self._run, Event()

        def send() -> None:
            try:
                run.finish(exit_code=exit_code)
            except Exception as error:
                if not stopped.is_set():
                    _warn(f"not all was sent: {_first_line(error)}. `wandb sync` sends the rest.")

        sending = Thread(target=send, daemon=True)
        sending.start()
        sending.join(FINISH_SECONDS + 5)
        if sending.is_alive():
            stopped.set()
            _end_service()
            _warn("the network is lost; `wandb sync --include-online` sends the rest.")
        self._run = None

    def _artifact(
        self, name: str, kind: str, folder: Path, files: Sequence[str], *, produced: bool
    ) -> None:
        def record(run: wandb.Run) -> None:
            import wandb

            artifact = wandb.Artifact(name, kind)
            for file in files:
                artifact.add_file(str(folder / file), name=file, skip_cache=True)
            artifact.finalize()
            # `run.log_artifact` and `use_artifact` wait for the server, and the latter refuses to
            # work offline. The server finds the version that another run produced by its content.
            assert run._interface is not None
            used = not produced
            run._interface.publish_artifact(
                run, artifact, ["latest"], is_user_created=used, use_after_commit=used
            )

        self._do(record)

    def _do(self, record: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            record(self._run)
        except Exception as error:
            self._failures += 1
            if self._failures == MOST_FAILURES:
                self._run = None
            lost = "not recorded" if self._run else "not recorded, nor is what follows"
            _warn(f"{lost}: {_first_line(error)}. The stage goes on.")


@contextmanager
def run(
    params: TrackingParams,
    *,
    stage: str,
    key: str,
    config: Mapping[str, Any],
    method: str = "",
    place: Path | None = None,
) -> Iterator[Tracker]:
    """Record a stage. The run's id comes from ``key``, so that a resumed stage continues its run.

    Files are kept in ``place``, or else in WANDB_DIR or the working directory.
    """
    if params.mode == "disabled":
        yield Tracker()
        return
    job = f"{stage}-{method}" if method else stage
    folder = Path(place or os.environ.get("WANDB_DIR", ".")).absolute()
    # Reports of W&B's own errors hold paths.
    with _environment(WANDB_DATA_DIR=_staging(folder), WANDB_ERROR_REPORTING="false"):
        tracker = _start(params, job, key[:16], config, folder)
        # Not `with`: leaving it by an exception, W&B prints a traceback with paths of the machine.
        try:
            yield tracker
        except BaseException:
            tracker.finish(1)
            raise
        tracker.finish(0)


def _staging(folder: Path) -> str:
    """Return where files of artifacts wait to be sent; by default W&B uses the user's home.

    W&B tells the server their path, so the path must not name a folder of the machine: below the
    working directory it is relative to that. `wandb sync` finds the files from there, even after
    the folder has moved.
    """
    here = Path("/proc/self/cwd")
    if here.exists() and folder.is_relative_to(Path.cwd()):
        folder = here / folder.relative_to(Path.cwd())
    return str(folder / "wandb")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set those variables that are not set yet."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _start(
    params: TrackingParams, job: str, run_id: str, config: Mapping[str, Any], folder: Path
) -> Tracker:
    """Begin a run, offline where the server does not answer; the stage goes on in any case."""
    import wandb

    mode = params.mode
    if mode == "auto":
        mode = "online" if _logged_in() else "offline"
    shared: dict[str, Any] = public(config)
    for attempt in (mode, "offline") if mode == "online" else (mode,):
        try:
            (folder / "wandb").mkdir(parents=True, exist_ok=True)
            run = wandb.init(
                project=params.project,
                id=run_id,
                name=f"{job}-{run_id[:6]}",
                group=pipeline_run(str(shared.get("data_version", ""))),
                job_type=job,
                config=shared,
                mode=attempt,
                resume="allow" if attempt == "online" else None,
                allow_val_change=True,
                dir=str(folder),
                settings=_settings(),
            )
            steps = _Steps(folder / "wandb" / f".{run_id}.step")
        except Exception as error:
            wandb.teardown()
            online = attempt == "online"
            fate = "recorded offline, `wandb sync` sends it" if online else "not recorded"
            _warn(f"{_first_line(error)}. The stage is {fate}.")
        else:
            first = run.step if attempt == "online" else steps.read() + 1
            return Tracker(run, f"{run.project}/{run.id}", first, steps)
    return Tracker()


def _settings() -> wandb.Settings:
    """Return settings that record neither code nor the machine, and leave the terminal alone."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        save_code=False,
        x_disable_meta=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1,  # s that a run which is killed may lose; else 15
        host="neurofoundry",
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
    )


def _logged_in() -> bool:
    """Return whether there is an API key, in the environment or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        return wbauth.read_netrc_auth(host=wandb.setup().settings.base_url) is not None
    except Exception as error:
        _warn(f"{_first_line(error)}. The stage is recorded offline, `wandb sync` sends it.")
        return False


class _Steps:
    """The last step that was recorded, which a run that is kept offline cannot be asked for."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)

    def read(self) -> int:
        """Return the step; -1 if there is none."""
        return int(os.pread(self._file.fileno(), 20, 0) or -1)

    def write(self, step: int) -> None:
        """Replace the step."""
        os.pwrite(self._file.fileno(), b"%020d" % step, 0)


def pipeline_run(data_version: str = "") -> str:
    """Return the name that groups the stages of one run.

    It is that of Kubeflow's run or of DVC's experiment, or else the version of the data, which is
    unknown until ingest has read them.
    """
    given = os.environ.get("NEUROFOUNDRY_RUN") or os.environ.get("DVC_EXP_NAME")
    return given or (f"data-{data_version[:12]}" if data_version else "ingest")


def public(values: Any) -> Any:
    """Return parameters in which a value that names a file is '…'."""
    if isinstance(values, Mapping):
        return {
            name: "…" if name in PRIVATE and value else public(value)
            for name, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [public(value) for value in values]
    return "…" if isinstance(values, str) and ("/" in values or "\\" in values) else values


def _pixels(path: Path) -> Any:
    """Return a picture without the name and the metadata of its file."""
    from PIL import Image

    with Image.open(path) as picture:
        return picture.convert("RGB")


def _end_service() -> None:
    """End W&B's own process, which would wait for the network forever; its data are on disk."""
    import wandb

    service = wandb.setup().ensure_service()
    assert service._proc is not None
    process = service._proc._process
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:  # sometimes it waits for the network all the same
        process.kill()
    # Else the exit of the command would wait for it.
    with suppress(Exception, SystemExit):
        wandb.teardown()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _warn(message: str) -> None:
    LOGGER.warning("W&B: %s", message)
