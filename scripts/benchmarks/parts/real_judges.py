"""How the answers of deployed models are judged, and where their files are found."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.parts import real_inputs

Feeds = Mapping[str, NDArray[np.generic]]
Judge = Callable[[ort.InferenceSession, ort.InferenceSession, int], float]
"""(original, pruned, seed) -> figure."""


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def package_folder(package: str, folder: Path | None) -> Path | None:
    if folder is not None and (folder / package).is_dir():
        return folder / package
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else None


def character_error(
    original: ort.InferenceSession, small: ort.InferenceSession, seed: int
) -> float:
    """Of the pruned recogniser, against the text that was drawn."""
    meta = original.get_modelmeta().custom_metadata_map
    letters = ["", *meta["character"].splitlines(), " "]
    texts, images = real_inputs.text_lines(30, 1000 + seed)
    wrong = 0
    for text, image in zip(texts, images, strict=True):
        best = small.run(None, {small.get_inputs()[0].name: image[None]})[0][0].argmax(-1)
        read = [letters[k] for j, k in enumerate(best) if k and (j == 0 or best[j - 1] != k)]
        wrong += distance("".join(read), text)
    return wrong / sum(map(len, texts))


def distance(left: str, right: str) -> int:
    """Levenshtein's."""
    row = list(range(len(right) + 1))
    for i, one in enumerate(left, 1):
        new = [i]
        for j, other in enumerate(right):
            new.append(min(row[j] + (one != other), row[j + 1] + 1, new[j] + 1))
        row = new
    return row[-1]


def mask_overlap(original: ort.InferenceSession, small: ort.InferenceSession, seed: int) -> float:
    """Intersection over union of the text found by both."""
    both = either = 0
    for page in real_inputs.pages(12, 1000 + seed):
        ours, theirs = (
            one.run(None, {one.get_inputs()[0].name: page[None]})[0] > 0.3
            for one in (small, original)
        )
        both, either = both + int((ours & theirs).sum()), either + int((ours | theirs).sum())
    return both / max(either, 1)


def same_class(inputs: Callable[[int], NDArray[np.generic]]) -> Judge:
    """Share of inputs whose top class is the original's."""

    def judged(original: ort.InferenceSession, small: ort.InferenceSession, seed: int) -> float:
        name = original.get_inputs()[0].name
        answers = [
            np.concatenate([one.run(None, {name: x[None]})[0] for x in inputs(1000 + seed)])
            for one in (original, small)
        ]
        return float((answers[0].argmax(-1) == answers[1].argmax(-1)).mean())

    return judged
