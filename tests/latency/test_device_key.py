"""Device keys: safe to store and send, and different where latencies are not comparable."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from onnx_nets import conv_net

from rlprune.errors import InputError
from rlprune.latency.device import batch_of, local_device_key, model_batch, with_threads


@dataclass
class Named:
    name: str = "ort"
    version: str = "1.31.1"

    def load(self, model: bytes, *, thread_count: int = 1, precision: str = "f32") -> None: ...


def test_names_runtime_hardware_threads_precision_and_batch() -> None:
    key = local_device_key(Named())
    assert re.fullmatch(r"[a-z0-9._-]{1,120}", key)
    assert key.startswith("ort-1.31.1.") and key.endswith(".t1.b1")
    assert key == local_device_key(Named())


def test_differs_where_latencies_are_not_comparable() -> None:
    keys = {
        local_device_key(Named()),
        local_device_key(Named(version="1.32.0")),
        local_device_key(Named(name="ncnn")),
        local_device_key(Named(), thread_count=2),
        local_device_key(Named(), batch=4),
    }
    assert len(keys) == 5


def test_stays_a_key_whatever_the_runtime_calls_itself() -> None:
    key = local_device_key(Named(name="O R/T!", version="1." + "9" * 300), thread_count=16)
    assert re.fullmatch(r"[a-z0-9._-]{1,120}", key) and key.endswith(".t16.b1")


def test_a_models_batch_is_its_first_inputs_leading_extent() -> None:
    assert batch_of([(4, 3, 8, 8), (1, 7)]) == 4
    assert batch_of([(7,), (2, 7)]) == 2, "a vector has no batch"
    assert batch_of([(0, 3, 8, 8)]) == 1, "open"
    assert batch_of([]) == 1
    assert model_batch(conv_net((8, 16), extent=8)) == 1


def test_the_same_device_with_other_threads_has_another_key() -> None:
    assert with_threads("ort-1.2.x86_64-cpu.t1.b1", 4) == "ort-1.2.x86_64-cpu.t4.b1"
    assert with_threads("macs", 1) == "macs" and with_threads("board", 1) == "board"
    with pytest.raises(InputError, match="names no threads"):
        with_threads("macs", 2)
