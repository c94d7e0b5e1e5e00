"""An episode as a person sees it: a table of groups, or bars."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlprune.mdp.episode import Episode

_BAR, _GAP, _HEIGHT = 12, 4, 120
"""Pixels: of a bar across, between bars, and of a bar that keeps all."""
_PAPER, _WHOLE, _KEPT, _DECIDED, _MARK = (
    np.array(colour, dtype=np.uint8)
    for colour in ((255, 255, 255), (225, 225, 225), (160, 190, 220), (50, 100, 170), (200, 60, 40))
)


def table(episode: Episode) -> str:
    """One line a group: units of the whole network, of the reference plan, and kept; which were
    decided; and the plan's latency against the budget."""
    task = episode.frame.task
    reference = task.keeps_at(episode.reference.choice)[0]
    upper = float(task.tables.upper_ms(episode.keeps)[0])
    rows = [
        f"{group.name[:30]:30} {group.width:>6} {whole:>10} {keep:>6}"
        f"  {'decided' if index < episode.group else 'as the reference would'}"
        for index, (group, whole, keep) in enumerate(
            zip(task.graph.groups, reference, episode.keeps[0], strict=True)
        )
    ]
    head = f"{'group':30} {'width':>6} {'reference':>10} {'keeps':>6}"
    foot = f"latency {upper:.4g} ms of {float(episode.budget_ms[0]):.4g} ms"
    return "\n".join((head, *rows, foot))


def bars(episode: Episode) -> NDArray[np.uint8]:
    """A bar a group, uint8 [height, width, 3]: the share kept, dark where it is decided, and a
    mark at the reference plan's."""
    task = episode.frame.task
    width = task.graph.widths
    kept = episode.keeps[0] / width
    reference = task.keeps_at(episode.reference.choice)[0] / width
    picture = np.empty((_HEIGHT + 2 * _GAP, _GAP + len(width) * (_BAR + _GAP), 3), dtype=np.uint8)
    picture[:] = _PAPER
    floor = _GAP + _HEIGHT
    for index, (share, mark) in enumerate(zip(kept, reference, strict=True)):
        columns = slice(_GAP + index * (_BAR + _GAP), (index + 1) * (_BAR + _GAP))
        picture[_GAP:floor, columns] = _WHOLE
        top = floor - max(1, round(share * _HEIGHT))
        picture[top:floor, columns] = _DECIDED if index < episode.group else _KEPT
        at = min(floor - round(mark * _HEIGHT), floor - 2)
        picture[at : at + 2, columns] = _MARK
    return picture
