from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import AlreadyExists, BadSettings
from cln_backup.node.settings import (
    Alarm,
    OnGap,
    Settings,
    State,
    create_settings,
    read_settings,
    read_state,
    write_state,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "settings", [Settings("file:///a b/ä"), Settings("file:///a", "sqlite3:///x/y.sqlite3")]
)
def test_settings_come_back(settings: Settings, tmp_path: Path) -> None:
    create_settings(str(tmp_path), settings)
    assert read_settings(str(tmp_path)) == settings
    assert [path.name for path in tmp_path.iterdir()] == ["backup.lock"]


def test_lock_file_of_the_incumbent(tmp_path: Path) -> None:
    (tmp_path / "backup.lock").write_text('{"backend_url": "file:///a", "more": [1]}')
    assert read_settings(str(tmp_path)) == Settings("file:///a")


def test_on_gap_is_snapshot_unless_it_says_halt(tmp_path: Path) -> None:
    lock = tmp_path / "backup.lock"
    for text, on_gap in (("", OnGap.SNAPSHOT), (', "on_gap": "halt"', OnGap.HALT)):
        lock.write_text('{"backend_url": "file:///a"' + text + "}")
        assert read_settings(str(tmp_path)) == Settings("file:///a", None, on_gap)
    lock.write_text('{"backend_url": "file:///a", "on_gap": "no"}')
    with pytest.raises(BadSettings, match='must be "snapshot" or "halt"'):
        read_settings(str(tmp_path))


def test_lock_file_is_never_overwritten(tmp_path: Path) -> None:
    create_settings(str(tmp_path), Settings("file:///a"))
    with pytest.raises(AlreadyExists):
        create_settings(str(tmp_path), Settings("file:///b"))
    assert read_settings(str(tmp_path)) == Settings("file:///a")
    assert [path.name for path in tmp_path.iterdir()] == ["backup.lock"]


def test_missing_lock_file_is_what_the_incumbent_says_too(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"Could not find backup\.lock in the lightning-dir"):
        read_settings(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"file:///a"',
        "{}",
        '{"backend_url": 7}',
        '{"backend_url": null}',
        '{"backend_url": "file:///a", "wallet": 7}',
        '{"backend_url": "file:///a", "on_gap": 7}',
        '{"backend_url": "file:///a", "on_gap": null}',
        '{"backend_url": "file:///a", "on_gap": ["halt"]}',
        '{"backend_url": "file:///a", "on_gap": "stop"}',
        "[" * 30_000,
        "\xff\xfe",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_lock_file_that_cannot_be_understood(content: str, tmp_path: Path) -> None:
    (tmp_path / "backup.lock").write_text(content, encoding="latin-1")
    with pytest.raises(BadSettings):
        read_settings(str(tmp_path))
    assert (tmp_path / "backup.lock").read_text(encoding="latin-1") == content


def test_state_comes_back(tmp_path: Path) -> None:
    assert read_state(str(tmp_path)) == State()
    alarm = Alarm("replay", "The change for data version 7 cannot be replayed.", 8.5)
    for state in (
        State("boot", 7.5),
        State(None, None),
        State("another", None, "mount 7"),
        State(replica_dir="/a/replica", alarm=alarm),
    ):
        write_state(str(tmp_path), state)
        assert read_state(str(tmp_path)) == state
    assert [path.name for path in tmp_path.iterdir()] == ["backup.state"]


def test_fields_of_a_later_release_are_kept(tmp_path: Path) -> None:
    (tmp_path / "backup.state").write_text('{"boot_id": "boot", "later": [1]}')
    write_state(str(tmp_path), read_state(str(tmp_path))._replace(mount="mount 7"))
    fields = json.loads((tmp_path / "backup.state").read_text())
    assert (fields["boot_id"], fields["mount"], fields["later"]) == ("boot", "mount 7", [1])


def test_state_of_another_shape(tmp_path: Path) -> None:
    (tmp_path / "backup.state").write_text(
        json.dumps({"boot_id": 7, "last_compaction_at": "x", "mount": 7})
    )
    assert read_state(str(tmp_path)) == State()
    (tmp_path / "backup.state").write_text("[]")
    with pytest.raises(BadSettings):
        read_state(str(tmp_path))
