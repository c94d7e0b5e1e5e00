"""The zoo of CIFAR-10 networks: every architecture is prunable, and weights load as recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import catalogue
from rlprune.errors import InputError
from rlprune.graph.from_onnx import trace_onnx


def test_all_architectures_are_small_and_nearly_all_their_macs_prunable() -> None:
    for name, net in catalogue.NETS.items():
        graph = trace_onnx(catalogue.exported(net.make().eval())).graph
        # What lies under LayerNorm stays, and with it the depthwise layers between.
        least = 0.85 if net.family == "convnext" else 0.9
        assert graph.prunable_macs_ratio() >= least, name
        assert int(graph.macs(graph.widths)) <= 30_000_000, name
        assert all(width % 8 == 0 for width in graph.widths), name


def test_each_held_out_family_has_two_nets_and_there_are_five_families() -> None:
    families = [net.family for net in catalogue.NETS.values()] + list(catalogue.PRETRAINED.values())
    assert all(families.count(family) >= 2 for family in catalogue.HELD_OUT)
    assert len(set(families) - set(catalogue.HELD_OUT)) >= 3
    assert len(families) >= 12


def test_kept_weights_load_with_the_recorded_shape() -> None:
    trained = [name for name in catalogue.names() if name in catalogue.NETS]
    if not trained:
        pytest.skip("no weights of the zoo; scripts/data zoo trains them")
    for name in trained:
        net = catalogue.load(name)
        assert net.card["family"] == net.family
        assert sum(p.numel() for p in net.module.parameters()) == net.card["params"]
        assert net.card["measured"]["validation_accuracy"] >= 0.85
        x = torch.from_numpy(net.preprocess(np.zeros((1, 32, 32, 3), np.uint8)))
        with torch.no_grad():
            assert net.module(x).shape == (1, 10)


@pytest.mark.filterwarnings("ignore:Exception ignored")  # the pack's loader leaves a file open
def test_a_pretrained_network_loads_through_the_same_door() -> None:
    try:
        net = catalogue.load("cifar10_resnet20")
    except SystemExit as error:
        pytest.skip(str(error))
    pixels = np.full((2, 32, 32, 3), 255, np.uint8)
    assert net.family == "residual"
    np.testing.assert_allclose(
        net.preprocess(pixels)[0, :, 0, 0],
        (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225],
        rtol=1e-5,
    )


def test_a_net_without_weights_and_an_unknown_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run scripts/data zoo --only vgg"):
        catalogue.load("vgg", weights=tmp_path)
    with pytest.raises(InputError, match="no net 'lenet' in the zoo"):
        catalogue.load("lenet")
