"""A trained policy on disk: a directory of `policy.safetensors` and `policy.json`, nothing else.

Neither file can run code when read. `load` refuses what this version cannot act on faithfully:
another format or observation version, other slots, shapes that do not chain, NaN, or tensors whose
digest is not the one the JSON names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rlprune.errors import PolicyError
from rlprune.files import write_atomic
from rlprune.mdp.episode import ACTION_SIZE, ActionMode
from rlprune.mdp.observe import OBSERVATION_VERSION, SLOTS
from rlprune.policy.network import Network

FORMAT = "rlprune.policy/1"
TENSORS_NAME = "policy.safetensors"
JSON_NAME = "policy.json"
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy did on models, as gain over the knapsack reference (positive is better)."""

    gain: float
    """Mean loss of the knapsack minus the policy's [nats]."""
    gain_low: float
    """Ends of the 90 % bootstrap interval over models and budgets."""
    gain_high: float
    saved_ratio: float
    """Mean gain as a share of the knapsack's loss; every model and every budget weighs the same."""
    saved_low: float
    """Ends of its 90 % interval."""
    saved_high: float
    differs_ratio: float
    """Share of groups whose keep differs from the reference's; 0 means nothing was learned."""
    models: tuple[str, ...]
    """Names of the models scored on."""


@dataclass(frozen=True)
class PolicyArtifact:
    """A network, what it expects to see, how its output is meant, and where it came from."""

    network: Network
    action: ActionMode
    """How its output is meant; see `rlprune.mdp.episode`."""
    seed: int
    validation: Score | None = None
    """On the models that chose it among its population; optimistic for that reason."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on and how; JSON values only."""
    digest: str = ""
    """sha256 (hex) of the tensors file; empty before it was saved or loaded."""

    def save(self, directory: str | Path) -> str:
        """Writes the two files and returns the digest; the JSON, written last, makes it valid."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        content = save_tensors(self.network.tensors())
        digest = hashlib.sha256(content).hexdigest()
        description = {
            "format": FORMAT,
            "action": self.action,
            "observation_version": OBSERVATION_VERSION,
            "slots": list(SLOTS),
            "hidden": list(self.network.sizes),
            "seed": self.seed,
            "validation": None if self.validation is None else asdict(self.validation),
            "provenance": dict(self.provenance),
            "sha256": digest,
        }
        write_atomic(path / TENSORS_NAME, content)
        write_atomic(path / JSON_NAME, (json.dumps(description, indent=2) + "\n").encode())
        return digest

    @staticmethod
    def load(directory: str | Path) -> PolicyArtifact:
        """Reads an artifact.

        Raises:
            PolicyError: not an artifact, damaged, or made for another version of rlprune.
        """
        path = Path(directory)
        content = _read(path / TENSORS_NAME)
        try:
            description = json.loads(_read(path / JSON_NAME))
            found = description["format"]
            if found != FORMAT:
                raise PolicyError(f"{path}: format is {found!r}, this version reads {FORMAT!r}")
            digest = hashlib.sha256(content).hexdigest()
            if description["sha256"] != digest:
                raise PolicyError(
                    f"{path}: {TENSORS_NAME} is not the file {JSON_NAME} was written for"
                )
            _check_slots(path, description)
            action = str(description["action"])
            if action not in ACTION_SIZE:
                raise PolicyError(
                    f"{path}: unknown action {action!r}, known: {', '.join(ACTION_SIZE)}"
                )
            network = Network.from_tensors(load_tensors(content))
            score = description["validation"]
            artifact = PolicyArtifact(
                network=network,
                action=action,
                seed=int(description["seed"]),
                validation=None
                if score is None
                else Score(**{**score, "models": tuple(score["models"])}),
                provenance=dict(description["provenance"]),
                digest=digest,
            )
        except (
            *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
            SafetensorError,
        ) as error:
            raise PolicyError(f"{path}: policy is damaged ({error!r}); train it again") from error
        if network.observation_size != len(SLOTS) or network.action_size != ACTION_SIZE[action]:
            raise PolicyError(
                f"{path}: network maps {network.observation_size} slots to {network.action_size} "
                f"actions, {action!r} needs {len(SLOTS)} to {ACTION_SIZE[action]}"
            )
        return artifact


def _check_slots(path: Path, description: Mapping[str, Any]) -> None:
    version = description["observation_version"]
    slots = tuple(description["slots"])
    if version != OBSERVATION_VERSION or slots != SLOTS:
        changed = sorted(set(slots) ^ set(SLOTS))[:3]
        why = f" (e.g. slot {changed[0]!r})" if changed else ""
        raise PolicyError(
            f"{path}: trained on observation version {version}, this is {OBSERVATION_VERSION}"
            f"{why}; train it again with `rlprune train`"
        )


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PolicyError(f"{path} is larger than {MAX_BYTES >> 20} MiB; not a policy")
        return path.read_bytes()
    except OSError as error:
        raise PolicyError(
            f"{path.parent} is not a policy directory: {path.name}: {error.strerror or error}"
        ) from error
