"""The rules and the dashboard in contrib/monitoring: valid, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from cln_backup.server.metrics import _Figures as Figures
from tests.documents import DOCS, ROOT
from tests.socket.serving import server_here

if TYPE_CHECKING:
    from pathlib import Path

_MONITORING = ROOT / "contrib" / "monitoring"
_FILES = sorted(_MONITORING.iterdir())


def _exists() -> set[str]:
    pytest.importorskip("prometheus_client")
    with server_here() as server:
        families = list(Figures(server.nodes, server.listener).collect())
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_metrics_of_the_rules_and_the_dashboard_exist(path: Path) -> None:
    used = set(re.findall(r"\bcln_backup_\w+", path.read_text(encoding="utf-8")))
    assert used
    assert used <= _exists()


def test_alerts_have_the_codes_of_pages() -> None:
    text = (_MONITORING / "cln-backup.rules.yml").read_text(encoding="utf-8")
    codes = re.findall(r"^ +code: (\S+)$", text, re.MULTILINE)
    assert len(codes) == text.count("- alert:")
    assert all((DOCS / "alarms" / f"{code}.md").is_file() for code in codes)


def test_dashboard_is_one_that_grafana_imports() -> None:
    dashboard = json.loads((_MONITORING / "cln-backup.dashboard.json").read_text(encoding="utf-8"))
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 5
    text = json.dumps(panels)
    used = set(re.findall(r"\$\{?(\w+)", text))
    assert used == variables
    places = [tuple(panel["gridPos"][name] for name in "xywh") for panel in panels]
    cells = [  # none lies over another
        (column, row)
        for x, y, w, h in places
        for column in range(x, x + w)
        for row in range(y, y + h)
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24


@pytest.mark.parametrize("arguments", [("check", "rules"), ("test", "rules")])
def test_promtool_passes_the_rules(arguments: tuple[str, str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    name = "cln-backup.rules.yml" if arguments[0] == "check" else "cln-backup.rules.test.yml"
    done = subprocess.run(
        [promtool, *arguments, name], cwd=_MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr
