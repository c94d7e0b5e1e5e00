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


def same_decisions(original: ort.InferenceSession, small: ort.InferenceSession, seed: int) -> float:
    """Share of 32 ms frames that both take for speech, or both not."""
    sound = real_inputs.speech(0, 1000 + seed)
    assert sound is not None
    answers = [_voice(one, sound)[0] > 0.5 for one in (original, small)]
    return float((answers[0] == answers[1]).mean())


def _voice(
    one: ort.InferenceSession, sound: NDArray[np.float32]
) -> tuple[NDArray[np.float64], list[Feeds]]:
    """Probability of speech in each frame, and what the model was fed."""
    names = {value.name for value in one.get_inputs()}
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    heard: list[float] = []
    fed: list[Feeds] = []
    for start in range(0, len(sound) - 512, 512):
        frame = np.concatenate([before, sound[start : start + 512]])[None]
        feeds: dict[str, NDArray[np.generic]] = {"input": frame, "state": state}
        fed.append(feeds)
        rate = {"sr": np.array(16000, np.int64)} if "sr" in names else {}
        answer, state = one.run(None, {**feeds, **rate})
        heard.append(float(np.ravel(answer)[0]))
        before = sound[start + 448 : start + 512]
    return np.array(heard), fed


def voice_inputs(read: Callable[[], bytes | None]) -> Callable[[int, bool], Feeds | None]:
    """Frames and the states before them, as they come when the original listens."""

    def made(seed: int, quick: bool) -> Feeds | None:
        sound, file = real_inputs.speech(1, seed), read()
        if sound is None or file is None:
            return None
        _, fed = _voice(session(file), sound)
        kept = fed[:: 4 if quick else 1]
        return {
            "input": np.concatenate([np.asarray(feeds["input"]) for feeds in kept]),
            "state": np.stack([np.asarray(feeds["state"]) for feeds in kept]),
        }

    return made
