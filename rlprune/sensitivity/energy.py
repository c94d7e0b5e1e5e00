"""Loss curves: what a planner adds up over groups, from what was measured or predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.schemes import Space, scheme_named
from rlprune.schemes.channels import dropped_energy
from rlprune.sensitivity.predicted import default_curves
from rlprune.sensitivity.types import GroupProfiles
from rlprune.surgery.importance import unit_scores


def energy_profiles(trace: OnnxTrace, space: Space) -> GroupProfiles:
    """Data-free curves: the share of energy dropped where surgery keeps the best."""
    levels = space.settings
    share = np.zeros(levels.shape)
    for group, units in enumerate(unit_scores(trace)):
        share[group] = dropped_energy(units, levels[group])
    for place, site in enumerate(space.sites[space.group_count :], space.group_count):
        found = scheme_named(site.scheme).dropped(trace, site)
        share[place, : len(found)] = found
    full = levels == levels[:, -1:]
    return GroupProfiles(
        fingerprint=trace.graph.fingerprint,
        levels=levels,
        level_count=space.option_count,
        energy_loss=np.where(full, 0.0, share),
    )


def shape_profiles(space: Space) -> GroupProfiles:
    """Profiles of a model whose weights are not known: no curves, only what options there are."""
    return GroupProfiles(
        space.graph.fingerprint, space.settings, space.option_count, energy_loss=None
    )


def loss_curve(profiles: GroupProfiles, space: Space) -> FloatArray:
    """What a planner adds up over sites [S, L]: 0 where a site is left as it is, and along the
    options of an ordered site non-increasing.

    In nats where losses were measured; of a network that was not trained, what a score at
    initialisation says (`sensitivity.initial`); otherwise what is predicted from the weights, or
    shapes alone, and from what other networks lost (`sensitivity.predicted`).
    """
    if profiles.measured_loss is not None:
        loss = profiles.measured_loss.mean(0)
    elif profiles.initial_loss is not None:
        loss = profiles.initial_loss
    elif profiles.predicted_loss is not None:
        loss = profiles.predicted_loss
    else:
        loss = predicted_curve(profiles, space)
    fitted = non_increasing(loss, profiles.level_count)
    if space.ordered.all():
        return fitted
    as_it_is = np.arange(loss.shape[-1]) >= profiles.level_count[:, None] - 1
    free = np.where(as_it_is, 0.0, np.maximum(loss, 0.0))
    return np.where(space.ordered[:, None], fitted, free)


def predicted_curve(profiles: GroupProfiles, space: Space) -> FloatArray:
    """What each option is thought to lose by the weights, or by shapes alone [S, L]; of channels
    as other networks' losses correct it."""
    groups, energy = space.group_count, profiles.energy_loss
    share = None if energy is None else energy[:groups]
    loss = default_curves().curve(space.graph, profiles.levels[:groups], share)
    if groups == len(space.sites):
        return loss
    dropped = 1.0 - space.shares if energy is None else energy
    others = [
        scheme_named(site.scheme).predicted_loss(space.graph, site, own[: len(site.values)])
        for site, own in zip(space.sites[groups:], dropped[groups:], strict=True)
    ]
    padded = [np.pad(own, (0, loss.shape[1] - len(own))) for own in others]
    return np.concatenate([loss, np.array(padded)])


def with_predictions(profiles: GroupProfiles, space: Space) -> GroupProfiles:
    """The same profiles with what is predicted of the sites, so that `loss_curve`, which gives the
    same, does not predict it again; for who plans from them more than once."""
    if profiles.predicted_loss is not None or profiles.initial_loss is not None:
        return profiles
    return replace(profiles, predicted_loss=predicted_curve(profiles, space))


def non_increasing(loss: FloatArray, level_count: IntArray) -> FloatArray:
    """The nearest non-increasing curves (least squares), none below 0, 0 at full width and padding.

    loss [..., G, L], level_count [G] -> [..., G, L]. Isotonic regression by its min-max formula:
    f(i) = min over j <= i of max over k >= i of mean(loss[j..k]).
    """
    length = loss.shape[-1]
    below = np.arange(length) < level_count[:, None] - 1  # [G, L], the levels that prune
    start, end = np.tril_indices(length)[::-1]
    total = np.concatenate([np.zeros((*loss.shape[:-1], 1)), np.cumsum(loss, -1)], -1)
    means = np.full((*loss.shape, length), -np.inf)  # [..., G, from, to]
    means[..., start, end] = (total[..., end + 1] - total[..., start]) / (end - start + 1)
    means = np.where(below[:, None, :], means, -np.inf)
    most = np.maximum.accumulate(means[..., ::-1], -1)[..., ::-1]
    most = np.where(np.tri(length, dtype=bool).T, most, np.inf)  # only from <= i
    fitted = np.minimum.accumulate(most, -2)[..., np.arange(length), np.arange(length)]
    return np.where(below, np.maximum(fitted, 0.0), 0.0)
