"""Every system call by which a process and its children change or map files, before it happens.

The kernel itself reports them: a filter (seccomp) that the process installs, and that its children
inherit, holds each call until this process has answered. So nothing is missed by language, library
or thread, and no program has to be installed. What it does not see: stores into a mapped file (that
a file is mapped is seen, also for reading), and calls by io_uring, which nothing here uses.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

NUMBERS = {
    "x86_64": {
        "write": 1, "open": 2, "mmap": 9, "pwrite64": 18, "writev": 20, "sendfile": 40,
        "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83,
        "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "chmod": 90,
        "fchmod": 91, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264,
        "linkat": 265, "symlinkat": 266, "fchmodat": 268, "utimensat": 280, "fallocate": 285,
        "pwritev": 296, "renameat2": 316, "copy_file_range": 326, "pwritev2": 328,
    },
    "aarch64": {
        "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38,
        "truncate": 45, "ftruncate": 46, "fallocate": 47, "fchmod": 52, "fchmodat": 53,
        "openat": 56, "write": 64, "writev": 66, "pwrite64": 68, "pwritev": 70, "sendfile": 71,
        "fsync": 82, "fdatasync": 83, "utimensat": 88, "mmap": 222, "renameat2": 276,
        "copy_file_range": 285, "pwritev2": 287,
    },
}  # fmt: skip
"""The calls that are held, by machine."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SECCOMP = {"x86_64": 317, "aarch64": 277}

NAMED = {  # the places of (folder's descriptor, path) among the arguments; None: the working folder
    "open": ((None, 0),), "creat": ((None, 0),), "truncate": ((None, 0),), "mkdir": ((None, 0),),
    "rmdir": ((None, 0),), "unlink": ((None, 0),), "chmod": ((None, 0),),
    "rename": ((None, 0), (None, 1)), "link": ((None, 0), (None, 1)), "symlink": ((None, 1),),
    "openat": ((0, 1),), "mkdirat": ((0, 1),), "unlinkat": ((0, 1),), "fchmodat": ((0, 1),),
    "utimensat": ((0, 1),), "symlinkat": ((1, 2),), "renameat": ((0, 1), (2, 3)),
    "renameat2": ((0, 1), (2, 3)), "linkat": ((0, 1), (2, 3)),
}  # fmt: skip
OPENED = {"copy_file_range": 2, "mmap": 4}
"""The place of the descriptor, where it is not the first argument."""

FREEING = ("unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2", "mmap")
"""Calls that succeed where a disk is full."""

CHANGES = os.O_CREAT | os.O_TRUNC
MAP_ANONYMOUS = 0x20
INSPECTED = {
    "open": (1, CHANGES, True),
    "openat": (2, CHANGES, True),
    "mmap": (3, MAP_ANONYMOUS, False),
}
"""Calls that are held only if an argument has any of these bits, or none of them."""

_libc = ctypes.CDLL(None, use_errno=True)
NEW_LISTENER, CONTINUE = 8, 1
RECEIVE, ANSWER = 0xC0502100, 0xC0182101


@dataclass(frozen=True)
class Call:
    """One call that is about to change, or to map, a file below a folder."""

    kind: str
    paths: tuple[str, ...]
    """Relative to the folder."""
    process: int


def works() -> bool:
    """Return whether this kernel and this user can hold calls."""
    if platform.machine() not in NUMBERS:
        return False
    ours, theirs = socket.socketpair()
    if (child := os.fork()) == 0:
        with suppress(BaseException):
            theirs.send(bytes([hold_calls() >= 0]))
        os._exit(0)
    theirs.close()
    with ours:
        answer = ours.recv(1)
    os.waitpid(child, 0)
    return answer == b"\1"


def hold_calls() -> int:
    """Hold the calls of this process, and of its children to come; return the descriptor for it."""
    numbers = NUMBERS[platform.machine()]
    jumps = [
        (0x20, 0, 0, 4),  # the architecture
        (0x15, 1, 0, ARCHITECTURES[platform.machine()]),
        (0x06, 0, 0, 0x7FFF0000),  # allow
        (0x20, 0, 0, 0),  # the number of the call
    ]
    for name, number in numbers.items():
        body = [(0x06, 0, 0, 0x7FC00000)]  # hold
        if name in INSPECTED:
            argument, bits, wanted = INSPECTED[name]
            test = (0x45, wanted, not wanted, bits)
            body = [(0x20, 0, 0, 16 + 8 * argument), test, (0x06, 0, 0, 0x7FFF0000), *body]
        jumps += [(0x15, 0, len(body), number), *body]
    jumps.append((0x06, 0, 0, 0x7FFF0000))
    code = b"".join(struct.pack("HBBI", *each) for each in jumps)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(jumps), ctypes.addressof(buffer))
    _libc.prctl(38, 1, 0, 0, 0)  # no new privileges: else only root may
    return int(_libc.syscall(SECCOMP[platform.machine()], 1, NEW_LISTENER, program))


@dataclass
class Watch:
    """Lets calls below ``folder`` pass, records them, and sends a signal at one of them."""

    folder: Path
    kill_at: int = 0
    """The number of the call, from 1, that does not happen any more; 0: none."""
    error: int = 0
    """What from that call on all calls that write end with, in place of a signal."""
    signal: signal.Signals = signal.SIGKILL
    everyone: bool = True
    """Whether it meets all processes, as in a container or on a terminal, or the one that calls."""
    calls: list[Call] = field(default_factory=list)
    killed: Call | None = None

    def serve(self, listener: int) -> None:
        """Answer until no process is left that could call."""
        poll = select.poll()
        poll.register(listener)
        while True:
            events = poll.poll()[0][1]
            if not events & select.POLLIN:
                os.close(listener)
                return
            with suppress(FileNotFoundError, ProcessLookupError):  # it was killed meanwhile
                self._answer(listener)

    def start(self, listener: int) -> threading.Thread:
        """`serve` in a thread."""
        thread = threading.Thread(target=self.serve, args=(listener,), daemon=True)
        thread.start()
        return thread

    def _answer(self, listener: int) -> None:
        notice = bytearray(80)
        fcntl.ioctl(listener, RECEIVE, notice)
        identity, task, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", notice)
        call = self._read(task, number, arguments)
        if call:
            self.calls.append(call)
            if self.error and len(self.calls) >= self.kill_at and call.kind not in FREEING:
                fcntl.ioctl(listener, ANSWER, struct.pack("QqiI", identity, 0, -self.error, 0))
                return
            if len(self.calls) == self.kill_at and not self.error:
                self.killed = call
                _send(self.signal, call.process, everyone=self.everyone)
                if self.signal == signal.SIGKILL:
                    return
        fcntl.ioctl(listener, ANSWER, struct.pack("QqiI", identity, 0, 0, CONTINUE))

    def _read(self, task: int, number: int, arguments: list[int]) -> Call | None:
        names = NUMBERS[platform.machine()]
        kind = next(name for name, value in names.items() if value == number)
        paths = tuple(filter(None, (self._below(path) for path in _paths(task, kind, arguments))))
        return Call(kind, paths, _process_of(task)) if paths else None

    def _below(self, path: str) -> str | None:
        root = str(self.folder)
        return path[len(root) + 1 :] if path.startswith(root + "/") else None


def _paths(task: int, kind: str, arguments: list[int]) -> list[str]:
    named = NAMED.get(kind)
    if named is None or (kind == "utimensat" and not arguments[1]):
        return [_link(f"/proc/{task}/fd/{_signed(arguments[OPENED.get(kind, 0)])}")]
    found = []
    for folder, place in named:
        path = _text(task, arguments[place])
        start = -100 if folder is None else _signed(arguments[folder])
        at = f"/proc/{task}/cwd" if start == -100 else f"/proc/{task}/fd/{start}"
        found.append(os.path.normpath(path if path.startswith("/") else f"{_link(at)}/{path}"))
    return found


def _signed(value: int) -> int:
    return struct.unpack("i", struct.pack("I", value & 0xFFFFFFFF))[0]  # type: ignore[no-any-return]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _text(task: int, address: int) -> str:
    with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
        content = b""
        while b"\0" not in content:  # a page at a time: the next one may not be mapped
            memory.seek(address + len(content))
            page = memory.read(4096 - (address + len(content)) % 4096)
            if not page:
                raise ProcessLookupError  # its memory is no more
            content += page
    return os.fsdecode(content.partition(b"\0")[0])


def _process_of(task: int) -> int:
    with open(f"/proc/{task}/status") as file:
        return int(next(line for line in file if line.startswith("Tgid:")).split()[1])


def _send(number: signal.Signals, process: int, *, everyone: bool) -> None:
    with suppress(ProcessLookupError):
        if everyone:
            os.killpg(os.getpgid(process), number)
        else:
            os.kill(process, number)
