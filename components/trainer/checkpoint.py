"""Where a training stands, written after every epoch, so that a killed one goes on from there.

The folder is named after everything that the training follows from: the same training finds it
again, another one never does. It holds one file, which a rename replaces: a kill leaves the one
before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tf_keras

from graftline.components.trainer.record import Best, Epoch, Phase

_FILE = "state.npz"


@dataclass
class State:
    """Where a training stands.

    Attributes:
        phases: those that are done.
        epochs: those of the phase under way.
        best: the best epoch of all.
        features_computed, features_seconds, features_derived, derived_seconds: as in the record.
        weights: of the whole network, in the order of its models.
        best_weights: of the best epoch.
        optimizer: the state of the phase's optimiser.
    """

    phases: list[Phase] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    best: Best | None = None
    features_computed: int = 0
    features_seconds: float = 0.0
    features_derived: int = 0
    derived_seconds: float = 0.0
    weights: list[np.ndarray] = field(default_factory=list)
    best_weights: list[np.ndarray] = field(default_factory=list)
    optimizer: list[np.ndarray] = field(default_factory=list)


_ARRAYS = ("weights", "best_weights", "optimizer")
_TOLD: dict[str, Any] = {
    "phases": list[Phase],
    "epochs": list[Epoch],
    "best": Best | None,
    "features_computed": int,
    "features_seconds": float,
    "features_derived": int,
    "derived_seconds": float,
}


class Checkpoints:
    """The checkpoints of one training.

    Args:
        root: folder of those of all trainings.
        follows_from: what the training follows from, as plain data.
        writes: whether this process writes them; of several workers one does.
    """

    def __init__(self, root: Path, follows_from: Mapping[str, Any], writes: bool) -> None:
        text = json.dumps(follows_from, sort_keys=True)
        self._folder = root / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._writes = writes

    def load(self) -> State:
        """The state that was written last; where there is none, or a torn one, a beginning."""
        try:
            with np.load(self._folder / _FILE, allow_pickle=False) as stored:
                told = json.loads(bytes(stored["told"]))
                arrays: dict[str, Any] = {
                    name: [stored[f"{name}_{i}"] for i in range(told["counts"][name])]
                    for name in _ARRAYS
                }
            fields: dict[str, Any] = {k: msgspec.convert(told[k], t) for k, t in _TOLD.items()}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return State()
        state = State(**fields, **arrays)
        state.best_weights = state.best_weights or state.weights
        return state

    def save(self, state: State) -> None:
        """Replaces what was written before, and removes what other trainings have left behind."""
        if not self._writes:
            return
        if not self._folder.is_dir():
            shutil.rmtree(self._folder.parent, ignore_errors=True)
            self._folder.mkdir(parents=True)
        told = {name: msgspec.to_builtins(getattr(state, name)) for name in _TOLD}
        lists = {name: getattr(state, name) for name in _ARRAYS}
        if state.best_weights is state.weights:
            lists["best_weights"] = []
        told["counts"] = {name: len(arrays) for name, arrays in lists.items()}
        named = {f"{name}_{i}": a for name, arrays in lists.items() for i, a in enumerate(arrays)}
        partial = self._folder / f"{_FILE}.partial"
        with partial.open("wb") as file:
            np.savez(file, told=np.frombuffer(json.dumps(told).encode(), np.uint8), **named)
        # Not synced, for that may have to wait for the features that were just stored. A crash of
        # the machine may leave a torn file, which `load` finds out.
        partial.replace(self._folder / _FILE)

    def remove(self) -> None:
        """The training is done."""
        shutil.rmtree(self._folder, ignore_errors=True)


def get_weights(models: Sequence[tf_keras.Model]) -> list[np.ndarray]:
    """Those of all the models, one after the other."""
    return [weight for model in models for weight in model.get_weights()]


def set_weights(models: Sequence[tf_keras.Model], weights: Sequence[np.ndarray]) -> None:
    """What `get_weights` returned."""
    start = 0
    for model in models:
        count = len(model.weights)
        model.set_weights(weights[start : start + count])
        start += count
