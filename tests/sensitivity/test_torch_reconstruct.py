"""A torch module reconstructed after a cut is the ONNX file reconstructed after the same cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from calibrated import own_images, shrunk, single_outputs
from topologies import TOPOLOGIES
from torch_nets import TRANSFORMERS

import rlprune
from rlprune.runtime import get_runtime
from rlprune.schemes import carry_out as carry_out_cut
from rlprune.schemes import removal_of, whole_space
from rlprune.sensitivity.correct import carry_out
from rlprune.sensitivity.reconstruct import with_layers
from rlprune.sensitivity.torch_reconstruct import reconstruct_module
from rlprune.surgery.onnx import prune_onnx
from rlprune.surgery.torch import cut_torch, prune_torch


@pytest.mark.parametrize(
    "name",
    [
        "resnet_a",  # padded shortcuts: the module keeps its channels in an order of its own
        "vgg_view",
        "mobilenet_v2",
    ],
)
def test_module_and_file_answer_alike_after_reconstruction(name: str) -> None:
    module, inputs = TOPOLOGIES[name]()
    trace = rlprune.trace(module.eval(), inputs)
    images = own_images(trace.onnx, 96)
    keeps = shrunk(trace.onnx)
    small = prune_torch(trace, keeps).eval()
    with torch.no_grad():
        cut = small(torch.from_numpy(images.x)).numpy()

        solved = reconstruct_module(small, trace, keeps, images, get_runtime())

        found = small(torch.from_numpy(images.x)).numpy()
    file = carry_out(trace.onnx, keeps, images)
    expected = single_outputs(file.model, images.x)
    scale = np.abs(expected).max()
    assert solved.moved == file.moved
    assert np.abs(found - expected).max() < 1e-3 * scale
    assert np.abs(cut - expected).max() > 1e-2 * scale


@pytest.mark.parametrize("name", ["resnet_a", "preact", "keywords_1d", "vit_packed"])
def test_module_and_file_answer_alike_with_kernels_cut_and_blocks_left_out(name: str) -> None:
    schemes = ("channel", "shape", "block")
    module, inputs = {**TOPOLOGIES, **TRANSFORMERS}[name]()
    trace = rlprune.trace(module.eval(), inputs)
    images = own_images(trace.onnx, 96)
    space = whole_space(trace.graph, schemes)
    chosen = np.arange(len(space.sites)) % 3 == 0
    chosen |= [site.scheme == "block" for site in space.sites]
    chosen[: space.group_count] = False
    settings = space.settings_at(np.where(chosen, 0, space.unpruned))
    settings[: space.group_count] = shrunk(trace.onnx)
    small = cut_torch(trace, removal_of(trace.onnx, settings, schemes)).eval()
    with torch.no_grad():
        wanted, cut = (net(torch.from_numpy(images.x)).numpy() for net in (module, small))

        solved = reconstruct_module(small, trace, settings, images, get_runtime(), schemes)

        found = small(torch.from_numpy(images.x)).numpy()
    assert solved.changes
    file = with_layers(carry_out_cut(trace.onnx, settings, schemes), solved.changes)
    expected = single_outputs(file, images.x)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.linalg.norm(found - wanted) < np.linalg.norm(cut - wanted)


@pytest.mark.parametrize("name", ["vit_packed", "vit_separate"])
def test_linear_layers_over_tokens_are_reconstructed(name: str) -> None:
    """Whose weights the trace holds transposed, under names of its own."""
    module, inputs = TRANSFORMERS[name]()
    trace = rlprune.trace(module.eval(), inputs)
    images = own_images(trace.onnx, 96)
    keeps = shrunk(trace.onnx)
    small = prune_torch(trace, keeps).eval()
    before = {name: value.clone() for name, value in small.state_dict().items()}

    solved = reconstruct_module(small, trace, keeps, images, get_runtime())

    moved = {name for name, value in small.state_dict().items() if (value != before[name]).any()}
    assert solved.changes
    assert {len(before[name].shape) for name in moved if name.endswith("weight")} == {2}
    with torch.no_grad():
        found = small(torch.from_numpy(images.x)).numpy()
    twin = with_layers(prune_onnx(trace.onnx, keeps), solved.changes)
    expected = single_outputs(twin, images.x)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["preact", "dense_concat"])
def test_layers_without_bias_or_batch_norm_behind_are_reconstructed_without_a_shift(
    name: str,
) -> None:
    module, inputs = TOPOLOGIES[name]()
    trace = rlprune.trace(module.eval(), inputs)
    images = own_images(trace.onnx, 96)
    keeps = shrunk(trace.onnx)
    x = torch.from_numpy(images.x)
    small = prune_torch(trace, keeps).eval()
    with torch.no_grad():
        wanted, cut = module(x), small(x)
        assert reconstruct_module(small, trace, keeps, images, get_runtime()).changes
        assert float((small(x) - wanted).norm()) < 0.8 * float((cut - wanted).norm())


def test_apply_reconstructs_a_module_where_it_is_given_images(tmp_path: Path) -> None:
    module, inputs = TOPOLOGIES["resnet_a"]()
    trace = rlprune.trace(module.eval(), inputs)
    images = own_images(trace.onnx, 96)
    np.savez(tmp_path / "images.npz", x=images.x, y=images.y)
    plan = rlprune.plan(trace, budget_ratio=0.6, device="macs", policy="knapsack")
    x = torch.from_numpy(images.x)
    with torch.no_grad():
        wanted = module(x)
        distances = [
            float((rlprune.apply(plan, trace, calibration=given).eval()(x) - wanted).norm())
            for given in ("none", tmp_path / "images.npz")
        ]
    assert distances[1] < 0.8 * distances[0]
