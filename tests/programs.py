"""Our own programs as processes, without the time that their imports take.

`Program` is a `subprocess.Popen` of `backup-cli`, of the simulator or of another module's `main`:
a process of its own, with its streams, signals, working directory, environment and exit code. It
is not started by exec but forked from one process for each test worker, which has imported
everything: `python -m tests.programs`. Tests of the start itself (the installed script, a broken
installation, another user, a limit, missing streams) run the installed program, `CLI`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import inspect
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

CLI = Path(sys.executable).with_name("backup-cli")
"""The installed program."""

_MAINS = {
    "backup-cli": ("cln_backup.cli.entry", "backup_cli"),
    "simulator": ("simulator.__main__", "main"),
}
_REQUEST_BYTES = 1 << 17
_SIGNATURE = inspect.signature(
    subprocess.Popen._execute_child  # type: ignore[attr-defined]
)


class Program(subprocess.Popen[Any]):
    """A process of `backup-cli`, of `simulator`, or of the module of that name.

    It takes the streams, `text`, `bufsize`, `cwd`, `env` and `start_new_session`, as `Popen` does.
    """

    _status: socket.socket | None = None

    def _execute_child(self, *given: Any) -> None:
        """The part of `Popen` after it has made the pipes."""
        of = _SIGNATURE.bind(self, *given).arguments
        assert not of["preexec_fn"]
        assert not of["pass_fds"]
        request = {
            "argv": [str(argument) for argument in of["args"]],
            "cwd": os.fspath(of["cwd"] or os.getcwd()),
            "environ": dict(os.environ if of["env"] is None else of["env"]),
            "new_session": bool(of["start_new_session"]),
            "umask": _umask(),
        }
        wanted = (of["p2cread"], of["c2pwrite"], of["errwrite"])
        streams = [fd if fd >= 0 else number for number, fd in enumerate(wanted)]
        self._status, theirs = socket.socketpair()
        with theirs:
            self.pid = _nursery().fork(request, [*streams, theirs.fileno()])
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(of["p2cread"], of["p2cwrite"], of["c2pread"], of["c2pwrite"]),
            *(of["errread"], of["errwrite"]),
        )

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        return self._look(0)

    def _wait(self, timeout: float | None) -> int:
        code = self._look(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _look(self, timeout_s: float | None) -> int | None:
        with self._waitpid_lock:  # type: ignore[attr-defined]
            if self.returncode is None and self._status is not None:
                if self._status.fileno() < 0:
                    # A failed test left this over, to be collected.
                    self.returncode = -signal.SIGKILL
                    return self.returncode
                ready, _, _ = select.select([self._status], [], [], timeout_s)
                if not ready:
                    return None
                self.returncode = int(self._status.recv(16) or -signal.SIGKILL)
                self._status.close()
            code: int | None = self.returncode
            return code


def start(name: str, *arguments: object, **options: Any) -> Program:
    """Starts a program and returns at once."""
    return Program([name, *map(str, arguments)], **options)


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `backup-cli` to its end; `input` is what it reads."""
    text = options.pop("input", None)
    with start(
        "backup-cli",
        *arguments,
        stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        out, err = process.communicate(text)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def installed(command: list[str]) -> list[str]:
    """The same as a command of the shell."""
    return [sys.executable, "-m", *command]


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


class _Nursery:
    """The process that forks, as the tests see it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.programs", str(theirs.fileno())],
                cwd=Path(__file__).parents[1],
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._close)

    def fork(self, request: dict[str, object], fds: list[int]) -> int:
        """Has a process forked; returns its id."""
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], fds)
            return int(self._control.recv(16))

    def _close(self) -> None:
        self._control.close()
        self._process.wait()


@functools.cache
def _nursery() -> _Nursery:
    return _Nursery()


def _serve(control: socket.socket) -> Callable[[], object] | None:
    """Forks at each request; returns, in a new process, what it shall do, and else at the end."""
    children: dict[int, socket.socket] = {}
    awake, wake = os.pipe()
    for fd in (awake, wake):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([control.fileno(), awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            _tell_who_ended(children)
        if control.fileno() not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(control, _REQUEST_BYTES, 4)
        if not data:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in range(3):
                os.dup2(fds[number], number)
            os.closerange(3, max(*fds, control.fileno(), awake, wake, *_numbers(children)) + 1)
            return _as_started(json.loads(data))
        children[pid] = socket.socket(fileno=fds.pop())
        for fd in fds:
            os.close(fd)
        control.send(str(pid).encode())


def _numbers(children: dict[int, socket.socket]) -> list[int]:
    return [status.detach() for status in children.values()]


def _tell_who_ended(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with children.pop(pid) as told, contextlib.suppress(BrokenPipeError):
            told.send(str(os.waitstatus_to_exitcode(status)).encode())


def _as_started(request: dict[str, Any]) -> Callable[[], object]:
    """Makes this process what exec would make it; returns the program's `main`."""
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    if request["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environ"])
    name, *arguments = request["argv"]
    sys.argv = [str(CLI) if name == "backup-cli" else name, *arguments]
    sys.modules["__main__"].__package__ = None  # as in a script
    unbuffered = "PYTHONUNBUFFERED" in os.environ
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stdout.reconfigure(write_through=unbuffered, line_buffering=sys.stdout.isatty())
    sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    sys.stderr.reconfigure(line_buffering=True)
    module, function = _MAINS.get(name, (name, "main"))
    found: Callable[[], object] = getattr(importlib.import_module(module), function)
    return found


def main() -> None:
    """Imports everything, and forks for as long as the tests run."""
    for name in ("tests.backends.set_back", "tests.disasters.victim"):
        importlib.import_module(name)
    for name in ("cln_backup", "simulator"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    program = _serve(socket.socket(fileno=int(sys.argv[1])))
    if program is not None:
        _run_to_its_end(program)


def _run_to_its_end(program: Callable[[], object]) -> NoReturn:
    """As the interpreter, but without its finalization, which takes longest of all."""
    code: object = 1
    try:
        code = program()
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception:  # noqa: BLE001 - as the interpreter does with uncaught exceptions
        sys.excepthook(*sys.exc_info())
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
