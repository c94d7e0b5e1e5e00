"""Generated pages are the ones that their sources give."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["gen_schema", "gen_service_api"])
def test_generated_file_is_current(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_service_page_tells_of_every_call_field_and_error() -> None:
    from rlprune.service.wire import STATUS
    from rlprune.v1 import devices_pb2, plans_pb2, types_pb2

    text = (ROOT / "docs" / "service_api.md").read_text(encoding="utf-8")
    for module in (plans_pb2, devices_pb2, types_pb2):
        file = module.DESCRIPTOR
        for service in file.services_by_name.values():
            assert all(f"### {method.name}\n" in text for method in service.methods)
        for message in file.message_types_by_name.values():
            rows = text.partition(f"### {message.name}\n")[2].partition("\n#")[0]
            for field in message.fields:
                row = re.search(rf"\| {field.number} \| `{field.name}` \| (.*) \| (.*) \|", rows)
                assert row and row[2].strip(), f"{message.name}.{field.name}"
    assert all(f"| `{reason}` | `{code.name}` |" in text for reason, code in STATUS.values())
