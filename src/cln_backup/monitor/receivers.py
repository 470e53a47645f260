"""Receivers of alarms: Apprise, a webhook, a command; each in a thread of its own, with retries."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import os
import shlex
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from cln_backup.model.errors import BadSettings
from cln_backup.model.health import Level

if TYPE_CHECKING:
    from cln_backup.monitor.alarms import Notice
    from cln_backup.monitor.messages import Receivers

_log = logging.getLogger(__name__)

_ANSWER_S: Final = 20.0
_COMMAND_S: Final = 60.0
_PAUSES_S: Final = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
"""Before each further try; then an alarm is given up, and said to be lost in the log."""

_LAST_PAUSE_S: Final = 5.0
_MAX_WAITING: Final = 256
_AGAIN: Final = {Level.GOOD: "Well again", Level.WARNING: "Warning", Level.BAD: "ALARM"}


class NotDelivered(Exception):
    """Why a receiver did not take an alarm; it is tried again."""


def title_of(title: str, notice: Notice) -> str:
    """One line: what has happened, and to which node."""
    where = f"{title} {notice.node}".strip()
    return f"{_AGAIN[notice.finding.level]}: {notice.finding.code} ({where})"


def text_of(notice: Notice) -> str:
    """The event, and the remedy."""
    if notice.finding.level is Level.GOOD:
        return f"It is over: {notice.finding.text}"
    return f"{notice.finding.text}\n\n{notice.finding.remedy}".strip()


def fields_of(title: str, notice: Notice) -> dict[str, object]:
    """The JSON that a webhook and a command get (docs/tasks/alarms.md)."""
    return {
        "source": title,
        "node": notice.node,
        "code": notice.finding.code,
        "level": notice.finding.level.value,
        "was": notice.was.value,
        "text": notice.finding.text,
        "remedy": notice.finding.remedy,
        "at": notice.at,
    }


class Receiver(ABC):
    """Takes alarms one after the other, and tries again what was not delivered."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._queue: Queue[Notice | None] = Queue(_MAX_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    @property
    @abstractmethod
    def shown(self) -> str:
        """Its name in the log, without secrets."""

    @abstractmethod
    def deliver(self, notice: Notice) -> None:
        """Delivers one alarm. Raises `NotDelivered`."""

    def tell(self, notice: Notice) -> None:
        """Takes an alarm, to deliver it soon; never waits."""
        try:
            self._queue.put_nowait(notice)
        except Full:
            _log.error("%s does not take alarms; one is lost.", self.shown)

    def close(self) -> None:
        """Tells it to deliver what it has, with shorter pauses, and to end."""
        self._closing.set()
        with contextlib.suppress(Full):
            self._queue.put_nowait(None)

    def join(self, until_s: float) -> None:
        """Waits for its end until a time of the monotonic clock."""
        self._thread.join(max(0.0, until_s - time.monotonic()))

    def _run(self) -> None:
        while True:
            try:
                notice = self._queue.get(timeout=_PAUSES_S[0])
            except Empty:
                if self._closing.is_set():
                    return
                continue
            if notice is None:
                return
            self._try(notice)

    def _try(self, notice: Notice) -> None:
        for pause_s in (*_PAUSES_S, None):
            try:
                self.deliver(notice)
            except NotDelivered as error:
                why = str(error)
            except Exception as error:  # noqa: BLE001 - the other alarms still have to be sent
                why = type(error).__name__
            else:
                return
            if pause_s is None:
                break
            if pause_s == _PAUSES_S[0]:
                _log.warning("%s did not take an alarm; trying again: %s", self.shown, why)
            if self._closing.wait(pause_s):  # this process ends soon
                time.sleep(min(pause_s, _LAST_PAUSE_S))
        _log.error("%s never took the alarm %s: %s", self.shown, notice.finding.code, why)


class Webhook(Receiver):
    """A URL that gets a POST with JSON."""

    def __init__(self, title: str, url: str) -> None:
        self._url = url
        super().__init__(title)

    @property
    def shown(self) -> str:
        """See `Receiver`."""
        return f"The webhook at {host_of(self._url)}"

    def deliver(self, notice: Notice) -> None:
        """See `Receiver`."""
        request(self._url, json.dumps(fields_of(self._title, notice)).encode())


class Command(Receiver):
    """A program that gets JSON on its standard input, and the main fields in its environment."""

    def __init__(self, title: str, command: str) -> None:
        self._command = shlex.split(command)
        super().__init__(title)

    @property
    def shown(self) -> str:
        """See `Receiver`."""
        return f"The command {self._command[0]}"

    def deliver(self, notice: Notice) -> None:
        """See `Receiver`."""
        fields = fields_of(self._title, notice)
        named = {f"CLN_BACKUP_{name.upper()}": str(value) for name, value in fields.items()}
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | named,
                start_new_session=True,
            )
        except OSError as error:
            raise NotDelivered(error.strerror or str(error)) from None
        try:
            process.communicate(json.dumps(fields).encode(), timeout=_COMMAND_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
            process.wait()
            raise NotDelivered(f"it ran for more than {_COMMAND_S:.0f} s") from None
        if process.returncode != 0:
            raise NotDelivered(f"it ended with {process.returncode}")


class AppriseUrl(Receiver):
    """A URL of Apprise, or the path of a file with one URL a line (extra `alarms`)."""

    def __init__(self, title: str, url: str) -> None:
        self._url = url
        super().__init__(title)

    @property
    def shown(self) -> str:
        """See `Receiver`."""
        is_path = self._url.startswith("/")
        return f"Apprise with {self._url if is_path else self._url.partition(':')[0] + ':'}"

    def deliver(self, notice: Notice) -> None:
        """See `Receiver`."""
        try:
            import apprise
        except ImportError:
            raise NotDelivered(
                "the extra `alarms` is not installed: pip install 'cln-backup[alarms]'"
            ) from None
        sender = apprise.Apprise()
        if self._url.startswith("/"):
            config = apprise.AppriseConfig()
            added = bool(config.add(self._url)) and bool(config.services())
            sender.add(config)
        else:
            added = bool(sender.add(self._url))
        if not added:
            raise NotDelivered("Apprise does not understand it")
        kinds = {
            Level.GOOD: apprise.NotifyType.SUCCESS,
            Level.WARNING: apprise.NotifyType.WARNING,
            Level.BAD: apprise.NotifyType.FAILURE,
        }
        taken = sender.notify(
            body=text_of(notice),
            title=title_of(self._title, notice),
            notify_type=kinds[notice.finding.level],
        )
        if not taken:
            raise NotDelivered("it was not taken")


def receivers_of(title: str, chosen: Receivers) -> list[Receiver]:
    """Starts the receivers. Raises `BadSettings` if a URL or a command is not valid."""
    check(chosen)
    return [
        *(AppriseUrl(title, url) for url in chosen.apprise),
        *(Webhook(title, url) for url in chosen.webhooks),
        *(Command(title, command) for command in chosen.commands),
    ]


def check(chosen: Receivers) -> None:
    """Raises `BadSettings` if a URL or a command cannot be used; nothing is contacted."""
    for url in (*chosen.webhooks, *chosen.pings):
        host_of(url)
    for command in chosen.commands:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise BadSettings(f"The command for alarms is not valid: {error}.") from None
        if not words:
            raise BadSettings("The command for alarms is empty.")


def host_of(url: str) -> str:
    """The host of an HTTP URL, without what may be secret. Raises `BadSettings`."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return parts.hostname
    except ValueError:
        pass
    raise BadSettings("A URL for alarms must begin with http:// or https:// and a host.")


def request(url: str, content: bytes | None = None) -> None:
    """Sends a POST with JSON, or a GET, and reads the answer's status.

    Raises:
        NotDelivered: there was no answer, or it is not a success.
    """
    parts = urlsplit(url)
    user, has_user, host = parts.netloc.rpartition("@")
    asked = urllib.request.Request(  # noqa: S310 - `host_of` has checked the scheme
        parts._replace(netloc=host).geturl(),
        data=content,
        headers={"Content-Type": "application/json", "User-Agent": "cln-backup"},
    )
    if has_user:
        login = base64.b64encode(unquote(user).encode()).decode()
        asked.add_unredirected_header("Authorization", f"Basic {login}")
    try:
        with urllib.request.urlopen(asked, timeout=_ANSWER_S):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise NotDelivered(f"HTTP {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise NotDelivered(type(reason).__name__) from None
