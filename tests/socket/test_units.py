"""The units in contrib/systemd: as systemd checks them, and under a systemd of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from shlex import quote, split

import pytest

from cln_backup.backends import create_backend
from cln_backup.backends.socket.token_file import create_token
from cln_backup.cli.server import server
from cln_backup.model.errors import AlreadyExists
from cln_backup.server import certificate
from tests.socket.serving import CLI, unused_port

_ROOT = Path(__file__).parents[2]
_UNITS = _ROOT / "contrib" / "systemd"
_INSTALLED = "/opt/cln-backup"
"""The virtual environment into which the docs install the wheel."""

_PROGRAM = f"{_INSTALLED}/bin/backup-cli"
_SYSTEMD = "/lib/systemd/systemd"

# A user's systemd, with a /run of its own, in which it believes that the system was booted by one.
_SCRIPT = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/user-1
chmod 700 /run/user-1
export XDG_RUNTIME_DIR=/run/user-1 HOME=$1
SYSTEMD --user --log-target=console > $HOME/systemd.log 2>&1 &
trap "kill $!; wait" EXIT
for _ in $(seq 600); do [ -S /run/user-1/systemd/private ] && break; sleep 0.1; done
ctl() { timeout 120 systemctl --user --no-pager "$@"; }
echo "# started when it is ready"
ctl start cln-backup-server.service
CLI status "$(cat $HOME/url)" | grep version
ctl reload cln-backup-server.service
ctl stop cln-backup-server.service
ctl show -p Result -p ExecMainStatus cln-backup-server.service
echo "# started by its port"
ctl start cln-backup-server-activated.socket
ctl is-active cln-backup-server-activated.service || true
CLI status "$(cat $HOME/url-activated)" | grep version
ctl is-active cln-backup-server-activated.service
echo "# killed, and started again"
ctl kill -s KILL cln-backup-server-activated.service
CLI status "$(cat $HOME/url-activated)" | grep version
ctl stop cln-backup-server-activated.socket cln-backup-server-activated.service
ctl show -p Result -p ExecMainStatus cln-backup-server-activated.service
"""
_SAID = """\
# started when it is ready
data version  0
Result=success
ExecMainStatus=0
# started by its port
inactive
data version  0
active
# killed, and started again
data version  0
Result=success
ExecMainStatus=0
"""


def _prepared(text: str, tmp_path: Path, ports: tuple[int, int]) -> str:
    """A unit for this test: other places, and without what a user's systemd cannot do."""
    for here, there in (
        (_PROGRAM, _program(tmp_path)),
        ("/etc/cln-backup/nodes", f"{tmp_path}/nodes"),
        ("/var/lib/cln-backup", f"{tmp_path}/tls"),
        ("[::]:8700", f"[::]:{ports[0]}"),
        ("ListenStream=8700", f"ListenStream={ports[1]}"),
        ("/srv/backup", str(tmp_path)),
    ):
        text = text.replace(here, there)
    left_out = ("User=", "Protect", "Private", "ReadWrite")
    return "".join(line for line in text.splitlines(True) if not line.startswith(left_out))


def _program(tmp_path: Path) -> str:
    """Leads to the program, by a path that systemd takes wherever this checkout is."""
    link = tmp_path / "backup-cli"
    if not link.is_symlink():
        link.symlink_to(CLI)
    return str(link)


def _settings(name: str) -> dict[str, list[str]]:
    """The settings of a unit: the values of each, in order."""
    found: dict[str, list[str]] = {}
    for line in (_UNITS / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


_STANDBY = "cln-backup-standby.service"
_SERVERS = sorted(path.name for path in _UNITS.iterdir() if path.name != _STANDBY)
_ALL = [*_SERVERS, _STANDBY]


@pytest.mark.parametrize("name", [name for name in _SERVERS if name.endswith(".service")])
def test_units_start_the_program_that_the_documented_install_makes(name: str) -> None:
    """Docs, unit, command line and the installed wheel agree."""
    (started,) = _settings(name)["ExecStart"]
    program, *arguments = split(started)
    assert program == _PROGRAM
    scripts = (_ROOT / "pyproject.toml").read_text().partition("[project.scripts]\n")[2]
    assert f"\n{Path(program).name} = " in f"\n{scripts}"
    for document in ("README.md", "docs/server.md"):
        text = (_ROOT / document).read_text()
        assert f"python3 -m venv {_INSTALLED}\n" in text
        assert f"{_INSTALLED}/bin/pip install cln_backup-*.whl\n" in text
        assert f'export PATH="{_INSTALLED}/bin:$PATH"' in text
        assert "/usr/local" not in text
        assert f"{_INSTALLED}/.venv" not in text
    with server.make_context("server", arguments[1:]) as context:
        assert arguments[0] == context.info_name
        listed, certificate = context.params["nodes_file"], context.params["tls_dir"]
    install = (_ROOT / "docs" / "server.md").read_text()
    assert f"touch {listed}\n" in install
    assert f"/var/lib/{_settings(name)['StateDirectory'][0]}" == certificate
    (user,), (writable,) = _settings(name)["User"], _settings(name)["ReadWritePaths"]
    assert f"useradd --system --no-create-home {user}\n" in install
    assert f"install -d -m 700 -o {user} -g {user} {writable}\n" in install
    assert _settings(name)["RequiresMountsFor"] == [writable]


def test_both_services_are_equally_hardened() -> None:
    """They differ in who opens the port, and in nothing else."""
    alone, activated = (
        (_UNITS / f"{name}.service").read_text().partition("[Service]\n")[2].partition("\n[")[0]
        for name in ("cln-backup-server", "cln-backup-server-activated")
    )
    assert alone.replace(" [::]:8700\n", "\n").strip() == activated.strip()
    assert "ProtectSystem=strict\n" in alone


def test_unit_of_the_standby_agrees_with_the_docs() -> None:
    """It has the server's hardening, and writes where the documented commands make a directory."""
    settings, server = _settings(_STANDBY), _settings("cln-backup-server.service")
    program, command, *arguments = split(settings["ExecStart"][0])
    assert (program, command) == (_PROGRAM, "standby")
    commands = [line.strip() for line in _docs(_STANDBY).splitlines()]
    assert f"backup-cli standby {arguments[0]} ~/.lightning/bitcoin" in commands
    (user,), (home,) = settings["User"], settings["ReadWritePaths"]
    assert f"useradd --system --home-dir {home} {user}" in commands
    assert f"install -d -m 700 -o {user} -g {user} {home}" in commands
    assert Path(arguments[1]).parent == Path(home)
    assert settings["RestartPreventExitStatus"] == [str(AlreadyExists.exit_code)]
    _, _, hardened = (_UNITS / "cln-backup-server.service").read_text().partition("\n\nNoNew")
    for name in re.findall(r"^(\w+)=", "NoNew" + hardened, re.MULTILINE):
        if name != "ReadWritePaths":
            assert settings[name] == server[name], name


def _docs(unit: str) -> str:
    document = "tasks/standby.md" if unit == _STANDBY else "server.md"
    return (_ROOT / "docs" / document).read_text()


@pytest.mark.parametrize("name", _ALL)
def test_documented_files_are_in_the_wheel(name: str) -> None:
    install = _docs(name)
    assert name in install
    copied = re.findall(rf"cp {_INSTALLED}/share/cln-backup/systemd/(\S+)", install)
    assert copied
    assert all((_UNITS / path).is_file() for path in copied)
    build = (_ROOT / "pyproject.toml").read_text()
    assert '"contrib/systemd" = "share/cln-backup/systemd"' in build


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("name", _ALL)
def test_unit_as_systemd_checks_it(tmp_path: Path, name: str) -> None:
    program = _program(tmp_path)
    for path in _UNITS.iterdir():
        text = path.read_text().replace(_PROGRAM, program)
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a directory for systemd")
@pytest.mark.skipif(
    not os.path.exists(_SYSTEMD) or shutil.which("unshare") is None,
    reason="there is no systemd, or no unshare",
)
def test_units_under_systemd(tmp_path: Path) -> None:
    ports = unused_port(), unused_port()
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip("nothing can be mounted here")
    home = tmp_path / ".config" / "systemd" / "user"
    home.mkdir(parents=True)
    for path in _UNITS.iterdir():
        (home / path.name).write_text(_prepared(path.read_text(), tmp_path, ports))
    create_backend(f"file://{tmp_path}/alice.bkp", None)
    token = create_token(str(tmp_path / "alice.token"))
    (tmp_path / "nodes").write_text(f"alice file://{tmp_path}/alice.bkp {token}\n")
    shown = certificate.fingerprint(certificate.make(str(tmp_path / "tls"))[0])
    for name, port in zip(("url", "url-activated"), ports, strict=True):
        options = f"node=alice&token-file={tmp_path}/alice.token&fingerprint={shown}"
        (tmp_path / name).write_text(f"socket:127.0.0.1:{port}?{options}")
    script = _SCRIPT.replace("SYSTEMD", _SYSTEMD).replace("CLI ", f"{quote(CLI)} ")
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    log = tmp_path / "systemd.log"
    said = done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    if "Startup finished" not in said and "# started when" not in said:
        pytest.skip(f"systemd does not run here: {said}")
    assert done.stdout == _SAID, said


def test_a_file_in_the_way_of_the_certificates_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AlreadyExists, match=f"{tmp_path}/file exists"):
        certificate.make(str(tmp_path / "file" / "tls" / "server"))
