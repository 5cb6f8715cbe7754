import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from neurofoundry.cli import main as cli
from neurofoundry.evaluate.params import MetricName
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.progress import Progress
from neurofoundry.stats.metrics import METRICS

COMMANDS = typer.main.get_command(cli.app)


def all_commands() -> list[str]:
    plain = [name for name in COMMANDS.commands if name != "plan"]
    return plain + [f"plan {name}" for name in COMMANDS.commands["plan"].commands]


@pytest.mark.parametrize("command", all_commands())
def test_every_command_explains_itself(command: str) -> None:
    said = CliRunner().invoke(cli.app, [*command.split(), "--help"])
    assert said.exit_code == 0, said.output
    assert "--help" in said.output


def test_quiet_logs_warnings_alone(logged: io.StringIO) -> None:
    for options, told in (([], "working\n"), (["-q"], "")):
        logged.seek(0)
        logged.truncate()
        CliRunner().invoke(cli.app, [*options, "verify", "nothing"])
        LOGGER.info("working")
        with Progress("preprocess", 2, unit="scans") as progress:
            progress.advance(2)
        LOGGER.warning("attention")
        lines = logged.getvalue()
        assert ("working\n" in lines, "2/2 scans" in lines) == (bool(told), bool(told))
        assert "attention" in lines


def test_a_shell_can_complete_commands() -> None:
    said = CliRunner().invoke(cli.app, ["--help"])
    assert "--install-completion" in said.output


def test_the_stages_whose_cost_can_be_foreseen_are_one_group() -> None:
    assert {"plan preprocess", "plan pretrain"} <= set(all_commands())


def test_parameters_are_checked_without_loading_what_computes() -> None:
    heavy = ("torch", "monai", "sklearn", "scipy.stats", "SimpleITK", "matplotlib")
    code = f"import sys, neurofoundry.project; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_metrics_that_params_may_name_are_those_there_are() -> None:
    assert set(MetricName.__args__) == set(METRICS)


@pytest.mark.parametrize(("asked", "used"), [(None, "1000"), ("7", "7")])
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(
    asked: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", asked or "")
    if asked is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    spins = []
    monkeypatch.setattr(cli, "app", lambda: spins.append(os.environ["GOMP_SPINCOUNT"]))
    cli.main()
    assert spins == [used]


def test_a_command_whose_streams_are_closed_prints_into_no_file(tmp_path: Path) -> None:
    """As services and batch systems may start it. Python ends its own messages there; what a
    library of C prints would go into whatever file is open as 1 or 2."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os\nfrom neurofoundry.cli import main as cli\n"
        "def app():\n"
        "    with open('held', 'w') as file:\n"
        "        print('printed', flush=True)\n"
        "        os.write(1, b'printed'); os.write(2, b'printed')\n"
        "        print(os.environ['PYTHONSAFEPATH'], file.fileno() > 2, file=file)\n"
        "    raise OSError(28, 'No space left on device')\n"
        "cli.app = app\ncli.main()\n"
    )
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, str(program)]
    assert subprocess.run(closed, cwd=tmp_path).returncode == 2
    assert (tmp_path / "held").read_text() == "neurofoundry True\n"
