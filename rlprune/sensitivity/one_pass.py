"""What every option is thought to lose, told from one pass of the unpruned network.

Of a layer that loses inputs, least squares restores a part of the output; the share of its variance
that stays unexplained follows from the inputs' covariance, which reconstruction takes anyway. How
much of it reaches the answers is told by the same pass (`sensitivity.gains`). Nothing is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray
from rlprune.runtime.base import Runtime
from rlprune.schemes import Space, cut_kernels, scheme_named
from rlprune.schemes.channels import CHANNELS
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.energy import energy_profiles
from rlprune.sensitivity.gains import Gains, Variances
from rlprune.sensitivity.large_layers import LargeLayer, WideLayer, of_rows
from rlprune.sensitivity.layers import Layer, layer_of, sharing, site_of
from rlprune.sensitivity.moments import InputMoments, run_once
from rlprune.sensitivity.reconstruct import Reconstruction
from rlprune.sensitivity.types import GroupProfiles
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.removal import Removal

LINE = (1.45, 0.67)
"""Slope and offset of the logarithm of what an option loses over that of the error that it leaves.
A block left out alone loses less, since the layers behind are solved again for it; but not where
many are: with a line of their own (2.5, 0.6) plans of ResNet-32 lost 1.5 nats for 1.1."""


@dataclass(frozen=True)
class OnePass:
    """What the unpruned network did on some samples."""

    trace: OnnxTrace
    sample_count: int
    layers: Sequence[Layer | LargeLayer | WideLayer]
    gains: Gains

    @staticmethod
    def of(
        trace: OnnxTrace,
        space: Space,
        samples: CalibrationSet,
        runtime: Runtime,
        *,
        hurried: bool = False,
    ) -> OnePass:
        """Runs it.

        Args:
            hurried: what large layers lose is told from less (see `large_layers`), and they cannot
                be solved by it.

        Raises:
            CalibrationError: it does not run on the samples, or overflows on them.
        """
        shared = sharing(trace, cut_kernels(trace, space.schemes))
        moments = InputMoments(trace, shared, len(samples), hurried=hurried)
        variances = Variances(trace)
        run_once(trace, samples, runtime, [moments, variances])
        tensors = {tensor.name: tensor for tensor in trace.model.graph.initializer}
        sites = {name: site_of(trace, nodes, tensors[name]) for name, nodes in shared.items()}
        seen, rows = moments.seen(), moments.rows()
        layers = [
            layer_of(site, seen[name]) if name in seen else of_rows(site, rows[name])
            for name, site in sites.items()
        ]
        return OnePass(trace, len(samples), layers, Gains.of(trace, variances))

    @cached_property
    def reconstruction(self) -> Reconstruction:
        """What plans' layers are solved with; not of a hurried pass."""
        return Reconstruction([one for one in self.layers if isinstance(one, Layer)])

    def profiles(self, space: Space) -> GroupProfiles:
        """Profiles of the sites, with what this pass tells in the place of a prediction."""
        return replace(
            energy_profiles(self.trace, space),
            predicted_loss=self.curve(space),
            passed_count=self.sample_count,
        )

    def curve(self, space: Space) -> FloatArray:
        """What every option is thought to lose alone [S, L], nats."""
        error = np.zeros(space.settings.shape)
        scores = unit_scores(self.trace)
        for place, site in enumerate(space.sites):
            own = slice(0, len(site.values) - 1)
            if site.scheme == CHANNELS.name:
                error[place, own] = self._of_channels(space, place, scores[place])[own]
                continue
            scheme = scheme_named(site.scheme)
            whole = Removal([np.arange(len(units)) for units in scores])
            for option, value in enumerate(site.values[:-1]):
                removal = scheme.remove(self.trace, [site], np.array([value]), whole)
                cut = [layer for layer in self.layers if layer.tensor in removal.windows]
                error[place, option] = self.gains.error(cut, removal, self.trace)
        slope, offset = LINE
        return np.asarray(np.where(error > 0.0, np.exp(offset) * error**slope, 0.0))

    def _of_channels(self, space: Space, group: int, scores: FloatArray) -> FloatArray:
        """The error that is left of the answers' variance by every count of units kept [L]."""
        rank = np.empty(len(scores), dtype=np.int64)
        rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
        found = np.zeros(len(space.sites[group].values))
        for layer in self.layers:
            owner, unit = layer.read
            own = owner == group
            if not own.any():
                continue
            last = np.full(len(own), -1)  # units that other groups own come first, as they stay
            last[own] = rank[unit[own]]
            stay = np.array([(last < keep).sum() for keep in space.sites[group].values])
            reach = sum(self.gains.reaching.get(name, 0.0) for name in layer.outputs)
            found += reach * layer.lost_in_order(np.argsort(last, kind="stable"), stay)
        return found
