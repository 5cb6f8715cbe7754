"""torchrun, but with the message and the exit code of the process that fails.

`python -m neurofoundry.pretrain.launch_ranks --standalone --nproc-per-node=2 -m neurofoundry
pretrain …`: the arguments are torchrun's, which itself exits with 1 after forty lines of its own,
whatever the cause. Here the cause is reported once, and its exit code kept: after 2 and 3 a person
has something to fix, and after others an orchestrator may try again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neurofoundry.errors import INTERRUPTION, complain

LAUNCHED = "NEUROFOUNDRY_LAUNCHED"
"""Environment variable that is set in the processes that `launch` starts."""


def launch(arguments: Sequence[str]) -> int:
    """Start the processes and wait for them; return the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ[LAUNCHED] = "1"
    logging.disable(logging.ERROR)  # torchrun's own
    parse: Callable[[list[str]], Any] = parse_args
    start: Callable[[Any], None] = run
    try:
        start(parse(list(arguments)))
    except SignalException as signalled:  # as were the processes, which have left a checkpoint
        if signalled.sigval == signal.SIGINT:
            complain(INTERRUPTION)
        return 128 + signalled.sigval
    except ChildFailedError as error:
        rank, first = min(error.failures.items(), key=lambda each: _priority(each[1].exitcode))
        if first.exitcode < 0:
            name = signal.Signals(-first.exitcode).name
            hint = " (too little memory?)" if name == "SIGKILL" else ""
            print(
                f"Process {rank} was killed by {name}{hint}, and the others were stopped. The same "
                "command continues from the last checkpoint.",
                file=sys.stderr,
            )
            return 128 - first.exitcode
        if Path(first.error_file).is_file():
            complain(first.message)
        return first.exitcode
    return 0


def _priority(code: int) -> int:
    """Lowest for the exit codes that are hardly the consequence of another process's end."""
    if code in (2, 3):
        return 0
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return 3  # torchrun stopped it
    return 1 if code < 0 else 2


def report(message: str) -> bool:
    """Leave an error to `launch`, which prints it once however many processes report it.

    Returns whether `launch` has started this process.
    """
    if LAUNCHED not in os.environ:
        return False
    content = {"message": message, "timestamp": int(time.time())}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content))
    return True


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
