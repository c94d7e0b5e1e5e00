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
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, so that no leftovers get into a wheel."""
    source = tmp_path_factory.mktemp("source")
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
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("wheel"))


def built(source: Path, out: Path) -> Path:
    """The wheel of the project in `source`."""
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, source])
    (wheel,) = out.glob("*.whl")
    return wheel


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
        for path in (ROOT / "rlprune").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "rlprune/latency/data/operators.json" in shipped and shipped <= names
    assert any(name.startswith("rlprune/policy/data/default/") for name in names)
    assert "rlprune/v1/plans_pb2_grpc.py" in names or any("_pb2_grpc.py" in n for n in names)
    assert not any(name.startswith(("tests/", "scripts/", "envs/")) for name in names)


def test_recordings_are_a_wheel_of_their_own(wheel: Path, source: Path, tmp_path: Path) -> None:
    """A board that plans needs none of the megabytes that policies are trained on."""
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if "/recorded/" in n or "/zoo/" in n or n.endswith(".parquet")]
    recordings = ROOT / "scripts" / "datasets" / "recordings"
    other = built(source / recordings.relative_to(ROOT), tmp_path)
    shipped = {
        str(path.relative_to(recordings))
        for path in (recordings / "rlprune_recordings").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(shipped) > 100 and shipped <= set(zipfile.ZipFile(other).namelist())
    assert wheel.stat().st_size < 1_000_000


def test_a_reader_without_the_recordings_says_how_to_get_them() -> None:
    code = """
import sys
sys.modules["rlprune_recordings"] = None
from datasets.running import recorded_folder, stoppable
with stoppable():
    recorded_folder()
"""
    scripts = str(ROOT / "scripts")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": scripts}
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "the recordings are not installed: pip install scripts/datasets/recordings"
    ]


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
    assert plan["feasible"] and plan["policy"] == "knapsack"
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
    """No heavy package is loaded; `scripts/bench speed` tells the time."""
    report = f"import sys; {statement}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    assert run([sys.executable, "-c", report]).split() == []


def test_version_is_the_same_everywhere() -> None:
    import rlprune

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    recordings = ROOT / "scripts/datasets/recordings/pyproject.toml"
    assert tomllib.loads(recordings.read_text())["project"]["version"] == declared
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert rlprune.__version__ == declared == newest[1]
