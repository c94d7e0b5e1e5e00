"""Environment and options of the whole suite.

What tests share (`support/`) is put on the import path, and `scripts/` behind everything else.

`--long` is for the tests that try many models, plans or damaged files: with it they try all.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.append(str(Path(__file__).parents[1] / "scripts"))

for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # read when onnxruntime is imported, not later
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)


# No test reads or writes what this machine's user has measured and planned.
_DATA = tempfile.mkdtemp(prefix="rlprune-tests-")
os.environ["XDG_DATA_HOME"] = _DATA


def pytest_unconfigure() -> None:
    shutil.rmtree(_DATA, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="all models, plans and damaged files; takes an hour"
    )


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether to try all that there is."""
    return bool(request.config.getoption("--long"))
