"""Alarms reach a webhook, a command and Apprise, also after failures; secrets are not logged."""

from __future__ import annotations

import base64
import json
import logging
import shlex
import sys
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import BadSettings
from cln_backup.model.health import Finding, Level
from cln_backup.monitor import receivers
from cln_backup.monitor.alarms import Notice
from cln_backup.monitor.messages import Receivers
from cln_backup.monitor.receivers import NotDelivered, Receiver, check, receivers_of
from tests.monitor.receiver import HttpReceiver
from tests.waiting import WAIT_S, wait_for, wait_until_ended

if TYPE_CHECKING:
    from pathlib import Path

_NOTICE = Notice(
    "alice", Finding("room", Level.BAD, "The disk is full.", "Free space."), Level.GOOD, 1000.0
)
_FIELDS = {
    "source": "host bitcoin",
    "node": "alice",
    "code": "room",
    "level": "bad",
    "was": "good",
    "text": "The disk is full.",
    "remedy": "Free space.",
    "at": 1000.0,
}


def _one(chosen: Receivers) -> Receiver:
    (receiver,) = receivers_of("host bitcoin", chosen)
    return receiver


def _tell(chosen: Receivers) -> None:
    receiver = _one(chosen)
    receiver.tell(_NOTICE)
    receiver.close()
    receiver.join(time.monotonic() + WAIT_S)


def test_webhook_gets_json() -> None:
    with HttpReceiver() as receiver:
        _tell(Receivers(webhooks=(f"{receiver.url}/hook?token=secret",)))
        assert receiver.posts == [("/hook?token=secret", _FIELDS)]


def test_webhook_with_a_user_and_a_password_in_its_url_logs_in() -> None:
    with HttpReceiver() as receiver:
        _tell(Receivers(webhooks=(f"http://alice:p%40ss@{receiver.host}/hook",)))
        assert receiver.posts == [("/hook", _FIELDS)]
        assert receiver.logins == ["Basic " + base64.b64encode(b"alice:p@ss").decode()]


def test_webhook_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with HttpReceiver((500,)) as receiver:
        with caplog.at_level(logging.WARNING):
            _tell(Receivers(webhooks=(f"{receiver.url}/secret-path",)))
        assert [content for _, content in receiver.posts] == [_FIELDS, _FIELDS]
    assert "HTTP 500" in caplog.text
    assert "secret" not in caplog.text


def test_alarm_that_is_never_taken_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "_PAUSES_S", (0.01,) * 3)
    with HttpReceiver((500,) * 9) as receiver, caplog.at_level(logging.WARNING):
        _tell(Receivers(webhooks=(receiver.url,)))
        assert len(receiver.posts) == 4
    assert "never took the alarm room" in caplog.text


def test_command_gets_json_and_environment(tmp_path: Path) -> None:
    program = (
        "import json, os, sys; open(sys.argv[1], 'w').write("
        "json.dumps([json.load(sys.stdin), os.environ['CLN_BACKUP_CODE']]))"
    )
    written = tmp_path / "with a space"
    _tell(Receivers(commands=(f'{sys.executable} -c "{program}" "{written}"',)))
    assert json.loads(written.read_text()) == [_FIELDS, "room"]


def test_command_that_is_missing_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with HttpReceiver() as receiver, caplog.at_level(logging.WARNING):
        both = receivers_of(
            "host", Receivers(webhooks=(receiver.url,), commands=("/nowhere/at-all --token x",))
        )
        for each in both:
            each.tell(_NOTICE)
        receiver.wait_for_posts(1)
        wait_for(lambda: "/nowhere/at-all did not take" in caplog.text)
    assert "--token" not in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Apprise's own code
@pytest.mark.parametrize("by_file", [False, True])
def test_apprise_sends_to_its_url(tmp_path: Path, by_file: bool) -> None:
    with HttpReceiver() as receiver:
        url = f"json://{receiver.host}/notify"
        if by_file:
            path = tmp_path / "urls"
            path.write_text(f"# where alarms go\n{url}\n")
            url = str(path)
        _tell(Receivers(apprise=(url,)))
        ((_, content),) = receiver.posts
    assert content["title"] == "ALARM: room (host bitcoin alice)"
    assert content["message"] == "The disk is full.\n\nFree space."
    assert content["type"] == "failure"


@pytest.mark.parametrize(
    "chosen",
    [
        Receivers(webhooks=("ftp://host/",)),
        Receivers(webhooks=("https:///path",)),
        Receivers(webhooks=("http://[",)),
        Receivers(pings=("/etc/passwd",)),
        Receivers(pings=("file:///etc/passwd",)),
        Receivers(commands=("",)),
        Receivers(commands=('"unclosed',)),
    ],
)
def test_invalid_receivers_are_refused(chosen: Receivers) -> None:
    with pytest.raises(BadSettings):
        check(chosen)


def test_command_that_hangs_leaves_no_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, limit_s = tmp_path / "started", 0.2
    script = f"sleep 1000 & echo $! > '{started}.new'; mv '{started}.new' '{started}'; wait"
    receiver = _one(Receivers(commands=(shlex.join(["sh", "-c", script]),)))
    while not started.exists():  # a busy machine may not come so far in a short time
        limit_s *= 2
        monkeypatch.setattr(receivers, "_COMMAND_S", limit_s)
        with pytest.raises(NotDelivered, match="it ran for more than"):
            receiver.deliver(_NOTICE)
    receiver.close()
    wait_until_ended(int(started.read_text()))
