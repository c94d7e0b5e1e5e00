"""Environment of the whole suite; its being here also puts `tests/` on the import path."""

import os

for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # read when onnxruntime is imported, not later
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)
