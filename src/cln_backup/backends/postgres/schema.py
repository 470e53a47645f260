"""The tables: how they are made, and which rights a node needs. `docs/format.md` describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import AccessDenied, StorageError

if TYPE_CHECKING:
    from cln_backup.backends.postgres.link import Link
    from cln_backup.backends.postgres.session import Session

VERSION: Final = 1

_TABLES: Final = f"""
BEGIN;
SELECT pg_advisory_xact_lock(hashtextextended('cln_backup/schema', 0));
SET LOCAL client_min_messages = error;
CREATE SCHEMA IF NOT EXISTS cln_backup;
CREATE TABLE IF NOT EXISTS cln_backup.layout (version int NOT NULL);
INSERT INTO cln_backup.layout SELECT {VERSION}
    WHERE NOT EXISTS (SELECT FROM cln_backup.layout);
CREATE TABLE IF NOT EXISTS cln_backup.heads (
    backup bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node text NOT NULL UNIQUE,
    epoch bigint NOT NULL DEFAULT 0,
    segment bigint NOT NULL DEFAULT 0,
    end_bytes bigint NOT NULL DEFAULT 0,
    seal bytea NOT NULL DEFAULT '',
    generation bigint NOT NULL DEFAULT 0,
    owner text NOT NULL DEFAULT '',
    writer text NOT NULL DEFAULT ''
) WITH (fillfactor = 20);
CREATE TABLE IF NOT EXISTS cln_backup.records (
    backup bigint NOT NULL,
    part bigint NOT NULL,
    at bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (backup, part, at)
);
ALTER TABLE cln_backup.records ALTER data SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS cln_backup.objects (
    object bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    backup bigint NOT NULL,
    name text,
    purpose text NOT NULL,
    size_bytes bigint NOT NULL DEFAULT 0,
    stored_at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
    UNIQUE (backup, name)
);
COMMIT;
"""

RIGHTS: Final = """\
CREATE ROLE node LOGIN;  -- with a password: \\password node
GRANT USAGE ON SCHEMA cln_backup TO node;
GRANT SELECT ON cln_backup.layout TO node;
GRANT SELECT, INSERT, UPDATE, DELETE ON cln_backup.heads, cln_backup.records, cln_backup.objects
    TO node;"""
"""All that a node's role needs; the tables are made by a role that may make a schema."""


def require_tables(link: Link) -> None:
    """Makes the tables if they do not exist; durable when it returns.

    Raises:
        AccessDenied: this role may not make a schema.
        StorageError: they are of a later release.
    """
    if not _exist(link):
        try:
            link.until(lambda session, until: session.run_block(_TABLES, until=until))
        except AccessDenied as error:
            raise AccessDenied(
                f"{error} The tables do not exist yet: run `backup-cli init` once as a role that "
                "may create a schema in this database, or grant it: GRANT CREATE ON DATABASE."
            ) from None
    link.until(require_version)


def _exist(link: Link) -> bool:
    return link.rows("SELECT to_regclass('cln_backup.objects') IS NOT NULL")[0][0] == 1


def require_version(session: Session, until: float) -> None:
    """Makes sure that the tables are of this release. Raises `NotFound`, `StorageError`."""
    found = session.run("SELECT version::int8 FROM cln_backup.layout", until=until)
    if [VERSION] not in found:
        raise StorageError(
            "The tables in the schema cln_backup are of a later release of cln-backup. Nothing was "
            "changed. Update cln-backup on this machine."
        )
