"""Ranks of one job, as torchrun starts them, but forked from a process that has torch already."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any


def start_ranks(target: Callable[..., None], *arguments: Any, count: int = 2) -> list[BaseProcess]:
    """Run ``target(*arguments)`` in ``count`` processes that find each other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([target.__module__])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    processes: list[BaseProcess] = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), **address}
        process = context.Process(target=_be_rank, args=(place, target, arguments))
        process.start()
        processes.append(process)
    return processes


def _be_rank(place: dict[str, str], target: Callable[..., None], arguments: Any) -> None:
    os.environ.update(place)
    target(*arguments)
