"""The files that the docs show for tests of DAGs run as they stand there, in a folder without any Airflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from airflow_llm_provider.testing import plugin

ROOT = Path(__file__).parents[2]
SHOWN = re.compile(r"<!-- (?P<file>[\w./]+) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)
FILES = {"pytest.ini", "dags/my_dag.py", "test_my_dag.py"}


def shown(page: str) -> dict[str, str]:
    """The files that a page shows."""
    return {found["file"]: found["text"] for found in SHOWN.finditer((ROOT / "docs" / page).read_text())}


@pytest.mark.parametrize(("page", "passed"), [("simulator.md", 2), ("operator.md", 1)])
def test_what_a_page_shows_passes(page: str, passed: int, tmp_path: Path) -> None:
    files = shown(page)
    assert set(files) == FILES
    for name, text in files.items():
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    env["AIRFLOW_HOME"] = str(tmp_path / "never-made")
    env["PYTHONPATH"] = str(ROOT)
    env["http_proxy"] = env["https_proxy"] = "http://127.0.0.1:9"  # nothing on the network is asked
    env["no_proxy"] = "127.0.0.1,localhost"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path / "new", env=env
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{passed} passed" in ran.stdout
    assert not (tmp_path / "never-made").exists()


def test_the_plugins_docstring_shows_the_same() -> None:
    files = shown("simulator.md")
    for name in ("pytest.ini", "test_my_dag.py"):
        told = re.sub(r"^ +$", "", indent(files[name], "    "), flags=re.MULTILINE)
        assert told in (plugin.__doc__ or ""), name
