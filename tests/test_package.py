"""What is shipped works where only the base dependencies are, and importing it stays cheap."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from small_onnx import small_onnx

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "gymnasium", "stable_baselines3", "onnxruntime", "sklearn", "scipy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel. Built from a copy of what git tracks, so that no leftovers get in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in tracked.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, source])
    (built,) = out.glob("*.whl")
    return built


def run(command: list[str | Path], **environment: str) -> str:
    """Standard output of a command that must succeed, away from the repository."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=os.sep,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_holds_the_code_the_policy_and_the_stubs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"rlprune/__init__.py", "rlprune/py.typed", "rlprune_envs/__init__.py"} <= names
    shipped = {
        str(path.relative_to(ROOT))
        for folder in ("rlprune/policy/data", "rlprune/v1", "rlprune/store/migrations")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped and shipped <= names
    assert any(name.startswith("rlprune/policy/data/default/") for name in names)
    assert "rlprune/v1/plans_pb2_grpc.py" in names or any("_pb2_grpc.py" in n for n in names)
    assert not any(name.startswith(("tests/", "scripts/", "envs/")) for name in names)


def test_wheel_works_with_the_base_dependencies_alone(wheel: Path, tmp_path: Path) -> None:
    """A bare environment, dependencies from the registry: client imported, plan for `macs` made."""
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=True)
    python = bare / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--constraint", ROOT / "constraints.txt", wheel])
    model = tmp_path / "model.onnx"
    model.write_bytes(small_onnx().SerializeToString())
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    run([python, "-c", "from rlprune.service.client import Client"], **home)
    rlprune = bare / "bin" / "rlprune"
    ask = [rlprune, "plan", model, "--budget-ratio", "0.6", "--device", "macs", "--json"]
    plan = json.loads(run([*ask, "--no-guard"], **home))
    assert plan["feasible"] and plan["policy"].startswith("learned/")
    refused = subprocess.run(
        [rlprune, "measure", model], capture_output=True, text=True, env={**os.environ, **home}
    )
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        'error: measuring needs the extra "device": pip install "rlprune[device]"'
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "import rlprune",
        "from rlprune.service.client import Client",
        "from rlprune import Client, PruningPlan, plan, trace, apply",
        "import rlprune.cli.app",
    ],
)
def test_importing_stays_light(statement: str) -> None:
    """No heavy package is loaded; `scripts/bench_speed` tells the time."""
    report = f"import sys; {statement}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    assert run([sys.executable, "-c", report]).split() == []


def test_version_is_the_same_everywhere() -> None:
    import rlprune

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert rlprune.__version__ == declared == newest[1]
