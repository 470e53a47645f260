"""A plugin that writes down what it is told, and misbehaves where its arguments say.

Arguments are NAME or NAME=VALUE; calls of db_write are counted from 1. Each message goes as one
line of JSON to the file RECORD.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Any

Message = dict[str, Any]

ARGUMENTS = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
GUARD = """
import json, os
buffer = b""
while b"\\n\\n" not in buffer:
    chunk = os.read(0, 1 << 20)
    if not chunk:
        raise SystemExit
    buffer += chunk
request = json.loads(buffer.decode("utf-8", "surrogateescape"))
answer = {"jsonrpc": "2.0", "id": request["id"], "result": {"result": "the worker is dead"}}
os.write(1, json.dumps(answer).encode() + b"\\n\\n")
"""


def main() -> None:
    """Read messages until stdin ends."""
    if "guard" in ARGUMENTS:
        subprocess.Popen([sys.executable, "-c", GUARD])
        buffer_limit = 1
    else:
        buffer_limit = 1 << 20
    with open(ARGUMENTS["RECORD"], "a", encoding="utf-8") as record:
        state = State(record)
        buffer = b""
        while True:
            if state.calls and "guard" in ARGUMENTS:
                time.sleep(60)
            chunk = os.read(0, buffer_limit)
            if not chunk:
                state.write({"eof": True, "partial": len(buffer)})
                return
            buffer += chunk
            while b"\n\n" in buffer:
                raw, _, buffer = buffer.partition(b"\n\n")
                state.take(raw)


class State:
    """Everything seen so far."""

    def __init__(self, record: Any) -> None:
        self.record = record
        self.calls = 0
        self.later: list[Message] = []
        self.init_id: Any = None

    def write(self, entry: Message) -> None:
        self.record.write(json.dumps(entry) + "\n")
        self.record.flush()

    def take(self, raw: bytes) -> None:
        message = json.loads(raw.decode("utf-8", "surrogateescape"))
        self.write({"pid": os.getpid(), "cwd": os.getcwd(), "bytes": len(raw), **message})
        method = message["method"].replace("-", "_")
        getattr(self, f"on_{method}")(message)

    def on_getmanifest(self, message: Message) -> None:
        time.sleep(float(ARGUMENTS.get("slow-manifest", 0)))
        if ARGUMENTS.get("disable") == "manifest":
            answer(message, {"disable": "told to"})
            return
        manifest: Message = {
            "options": [
                {"name": "backup-destination", "type": "string", "description": "where"},
                {"name": "backup-count", "type": "int", "default": 3, "description": "how many"},
            ],
            "rpcmethods": [
                {"name": name, "usage": "", "description": ""}
                for name in ("echo", "answer-later", "now-answer", "progress-then-answer", "quit")
            ],
            "hooks": [] if "no-hook" in ARGUMENTS else [{"name": "db_write"}],
            "subscriptions": ["shutdown"] if "shutdown" in ARGUMENTS else [],
            "dynamic": "dynamic" in ARGUMENTS,
        }
        if "bad-manifest" in ARGUMENTS:
            del manifest["options"]
        answer(message, manifest)

    def on_init(self, message: Message) -> None:
        if ARGUMENTS.get("init") == "never":
            return
        if ARGUMENTS.get("init") == "after-call":
            self.later.append(message)
            return
        answer(message, {"disable": "told to"} if ARGUMENTS.get("disable") == "init" else {})

    def on_db_write(self, message: Message) -> None:
        self.calls += 1
        for name, value in ARGUMENTS.items():
            if value == str(self.calls):
                special = getattr(self, f"when_{name.replace('-', '_')}", None)
                if special is not None and special(message):
                    return
        if "chatty" in ARGUMENTS:
            log("info", "x" * 200_000)
        answer(message, {"result": "continue"})
        while self.later:
            answer(self.later.pop(), {})

    def when_refuse(self, message: Message) -> bool:
        answer(message, {"result": "stop", "reason": "it hurts"})
        return True

    def when_error(self, message: Message) -> bool:
        send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -1, "message": "no"}})
        return True

    def when_die_in(self, _message: Message) -> bool:
        os._exit(3)

    def when_die_after(self, message: Message) -> bool:
        answer(message, {"result": "continue"})
        os._exit(3)

    def when_malformed(self, message: Message) -> bool:
        os.write(1, b'{"jsonrpc": "2.0", "id": tru}\n\n')
        return self.when_silent(message)

    def when_silent(self, _message: Message) -> bool:
        return True

    def when_unknown_id(self, message: Message) -> bool:
        send({"jsonrpc": "2.0", "id": "cln:db_write#999", "result": {"result": "stop"}})
        answer(message, {"result": "continue"})
        return True

    def when_no_separator(self, message: Message) -> bool:
        text = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"result": "continue"}})
        os.write(1, text[:20].encode())
        time.sleep(0.05)
        os.write(1, text[20:].encode())
        return True

    def when_log(self, _message: Message) -> bool:
        for level in ("trace", "debug", "info", "unusual", "broken", "warn", "ERROR"):
            log(level, f"at {level}")
        log("info", "two\nlines, naïve")
        send({"jsonrpc": "2.0", "method": "log", "params": {"message": "no level"}})
        return False

    def when_bad_level(self, message: Message) -> bool:
        return self.continue_then_log(message, {"level": "loud", "message": "hm"})

    def when_no_message(self, message: Message) -> bool:
        return self.continue_then_log(message, {"level": "info"})

    def continue_then_log(self, message: Message, params: Message) -> bool:
        answered = {"jsonrpc": "2.0", "id": message["id"], "result": {"result": "continue"}}
        logged = {"jsonrpc": "2.0", "method": "log", "params": params}
        os.write(1, json.dumps(answered).encode() + json.dumps(logged).encode())
        return True

    def when_own_topic(self, _message: Message) -> bool:
        send({"jsonrpc": "2.0", "method": "my_topic", "params": {}})
        return False

    def on_echo(self, message: Message) -> None:
        answer(message, {"said": message["params"]})

    def on_answer_later(self, message: Message) -> None:
        self.later.append(message)

    def on_now_answer(self, message: Message) -> None:
        answer(self.later.pop(), {"late": True})
        answer(message, {})

    def on_progress_then_answer(self, message: Message) -> None:
        params = {"id": message["id"], "level": "info", "message": "half"}
        send({"jsonrpc": "2.0", "method": "message", "params": params})
        answer(message, {})

    def on_quit(self, _message: Message) -> None:
        os._exit(0)

    def on_shutdown(self, _message: Message) -> None:
        if ARGUMENTS["shutdown"] == "ignore":
            return
        self.write({"others": others()})
        if ARGUMENTS["shutdown"]:
            self.record.flush()
            wanted = self.calls + int(ARGUMENTS["shutdown"])
            buffer = b""
            while self.calls < wanted:
                buffer += os.read(0, 1 << 20)
                while b"\n\n" in buffer:
                    raw, _, buffer = buffer.partition(b"\n\n")
                    self.take(raw)
            while others():
                time.sleep(0.01)
        os._exit(0)


def others() -> int:
    """Count the node's other children that have not ended."""
    count = 0
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
            count += int(parent) == os.getppid() and int(name) != os.getpid() and state != "Z"
    return count


def answer(message: Message, result: object) -> None:
    send({"jsonrpc": "2.0", "id": message["id"], "result": result})


def log(level: str, text: str) -> None:
    send({"jsonrpc": "2.0", "method": "log", "params": {"level": level, "message": text}})


def send(message: object) -> None:
    data = json.dumps(message, ensure_ascii=False).encode() + b"\n\n"
    with contextlib.suppress(BrokenPipeError):  # the node died
        while data:
            data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
