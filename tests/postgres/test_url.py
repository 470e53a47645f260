"""Passwords are refused in URLs, and are in no message about one."""

from __future__ import annotations

import pytest

from cln_backup.backends.postgres.url import parse_postgres_url
from cln_backup.model.errors import BadUrl


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://node:hunter2@db/x?node=a",
        "postgresql://node:hunter2@db,db2/x?node=a",
        "postgresql://node%3ahunter2@db/x?node=a",
        "postgresql://node:hunter2/=@db/x?node=a",
        "postgresql://node:hunter2?=@db/x?node=a",
        "postgresql://node:hunter2@@db:5432/x?node=a",
        "postgresql://node@db/x?node=a&password=hunter2",
        "postgresql://node@db/x?node=a&sslpassword=hunter2",
    ],
)
def test_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadUrl, match=r"password") as error:
        parse_postgres_url(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgresql://db:5432/x?node=a&passfile=/home/a@b/pgpass", "db", "5432"),
        ("postgresql://me@db,db2:5433/x?node=a&passfile=/a:b@c", "db,db2", ",5433"),
        ("postgresql://db,[::1]:5433/x?node=a&passfile=/a:b@c", "db,::1", ",5433"),
        ("postgresql://[::1]/x?node=a&passfile=/a@c", "::1", None),
    ],
)
def test_ports_and_paths_are_no_password(url: str, host: str, port: str | None) -> None:
    at = parse_postgres_url(url)
    assert (at.libpq["host"], at.libpq.get("port")) == (host, port)
