"""torchrun, except that it ends as the processes that it starts end.

`python -m neurofoundry.pretrain.launch_ranks --standalone --nproc-per-node=2 -m neurofoundry
pretrain …`: the arguments are torchrun's, which itself ends with 1 and forty lines of its own
whatever has happened. Here the cause is told once, and its exit code kept: after 2 and 3 a person
has something to fix, and an orchestrator may try again after others.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from neurofoundry.errors import complain

LAUNCHED = "NEUROFOUNDRY_LAUNCHED"
"""Of the environment: set in processes that are started here."""


def launch(arguments: Sequence[str]) -> int:
    """Start the processes and wait for them; the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ[LAUNCHED] = "1"
    logging.disable(logging.ERROR)  # torchrun's own
    try:
        run(parse_args(list(arguments)))
    except SignalException as told:  # the processes were told too, and have left a checkpoint
        return 128 + told.sigval
    except ChildFailedError as error:
        rank, first = min(error.failures.items(), key=lambda each: _guilt(each[1].exitcode))
        if first.exitcode < 0:
            name = signal.Signals(-first.exitcode).name
            hint = " (too little memory?)" if name == "SIGKILL" else ""
            print(
                f"Process {rank} was ended by {name}{hint}, and the others with it. The same "
                "command goes on from the last checkpoint.",
                file=sys.stderr,
            )
            return 128 - first.exitcode
        if Path(first.error_file).is_file():
            complain(first.message)
        return first.exitcode
    return 0


def _guilt(code: int) -> int:
    """The least for what can hardly be the consequence of another process's end."""
    if code in (2, 3):
        return 0
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return 3  # they were told to
    return 1 if code < 0 else 2


def report(message: str) -> bool:
    """Leave what stops this process to `launch`, if that has started it, so that it is said once
    however many processes say it."""
    if LAUNCHED not in os.environ:
        return False
    told = {"message": message, "timestamp": int(time.time())}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(told))
    return True


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
