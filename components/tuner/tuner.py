"""The tuner as TFX's Tuner calls it: trainings side by side, judged on the eval split.

KerasTuner proposes values, a first third at random and then where a Gaussian process expects the
most (Snoek et al., 2012, https://arxiv.org/abs/1206.2944); the first trial has the values as they
are configured, so that what is found is never worse on the eval split than what was there. A trial
is a training of `components.trainer` without its later phases: the head on features that were
computed once. Trials that are done survive a kill.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras_tuner
import msgspec
import tensorflow as tf
import tf_keras
from keras_tuner.engine import base_tuner, trial
from keras_tuner.errors import FatalError

from graftline.components.progress import report
from graftline.components.trainer.checkpoint import Checkpoints, State
from graftline.components.trainer.config import TrainerConfig
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.phases import Diverged
from graftline.components.trainer.run import FOLLOWS_FROM, make_training, memory_used_up
from graftline.components.trainer.training import Training
from graftline.components.tuner import space
from graftline.components.tuner.config import TunerConfig
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs
    from tfx.v1.components import TunerFnResult

OBJECTIVE = "brier"
# The Brier score of a certain and wrong answer: what a trial that came to nothing is worth.
_WORST = 2.0
_AT_RANDOM = 1 / 3


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Makes the tuner.

    Args:
        fn_args: TFX's; `custom_config` holds what the trainer's `run_fn` wants, the section
            `tuner` and the folder `trials`, where those that are done are kept until the end.

    Raises:
        UserError: there is nothing to train on or to judge by, or the space names what the trainer
            does not take.
    """
    from tfx.v1.components import TunerFnResult

    settings = dict(fn_args.custom_config)
    config = msgspec.convert(settings["tuner"], TunerConfig)
    # The trials run in this process, one after the other, and leave no logs.
    settings["trainer"] = {**settings["trainer"], "workers": 1, "tensorboard": {}}
    trainer = msgspec.convert(settings["trainer"], TrainerConfig)
    training = make_training(
        {
            "settings": settings,
            "transform": fn_args.transform_graph_path,
            "files": {"train": list(fn_args.train_files), "eval": list(fn_args.eval_files)},
            "logs": fn_args.working_dir,
        },
        Hardware.find(trainer, alone=True),
    )
    if not len(training.evaluation):
        raise UserError(
            "There is no image in the eval split: nothing to judge the trials by. Drop more images."
        )
    follows_from = {
        **{name: settings[name] for name in (*FOLLOWS_FROM, "tuner")},
        "images": [training.train.digest, training.evaluation.digest],
    }
    return TunerFnResult(
        tuner=TrainingTuner(training, config, Path(settings["trials"]), follows_from),
        fit_kwargs={"verbose": 0},
    )


class _Ended(FatalError, UserError):
    """A user's mistake, which ends the search, where KerasTuner would go on."""


class _Oracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """Tries the values as they are configured before all others."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """The values of the next trial."""
        if self.trials:
            return super().populate_space(trial_id)
        return {
            "status": trial.TrialStatus.RUNNING,
            "values": {one.name: one.default for one in self.hyperparameters.space},
        }


class TrainingTuner(base_tuner.BaseTuner):
    """Searches for the values with which a training does best on the eval split.

    Args:
        training: what every trial is, but for the values it tries.
        config: the section `tuner`.
        folder: where trials are kept, of all searches.
        follows_from: what this search follows from, as plain data: the same one goes on.
    """

    def __init__(
        self,
        training: Training,
        config: TunerConfig,
        folder: Path,
        follows_from: Mapping[str, Any],
    ) -> None:
        self._training = training
        self._config = config
        phases = space.last_phase(training.config, config.space)
        self._phases = training.config.phases[:phases]
        text = json.dumps(follows_from, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        try:
            super().__init__(self._oracle(), directory=str(folder), project_name=name)
        except (ValueError, KeyError, TypeError, RuntimeError):
            # The kill came while a file was written; KerasTuner does not replace them whole.
            shutil.rmtree(folder / name)
            super().__init__(self._oracle(), directory=str(folder), project_name=name)

    def _oracle(self) -> _Oracle:
        config, trainer = self._config, self._training.config
        return _Oracle(
            objective=keras_tuner.Objective(OBJECTIVE, "min"),
            max_trials=config.trials,
            num_initial_points=max(2, round(config.trials * _AT_RANDOM)),
            seed=trainer.seed + 1,  # 0 is none
            hyperparameters=space.hyperparameters(trainer, config.space),
        )

    def run_trial(self, trial: trial.Trial, **_: Any) -> dict[str, float]:
        """Trains with a trial's values; returns the error of its best epoch."""
        values = space.decoded(self._config.space, trial.hyperparameters.values)
        number = f"trial {len(self.oracle.trials)}/{self._config.trials}"
        report(f"{number}  {_told(values)}")
        try:
            score = self._score(values)
        except Diverged:
            score = _WORST
        except tf.errors.ResourceExhaustedError as error:
            raise _Ended(str(memory_used_up(error, self._training))) from error
        except msgspec.ValidationError as error:
            # Values that the trainer takes one by one, and not together.
            report(f"{number}  cannot train: {str(error).partition(' - at ')[0]}")
            score = _WORST
        except UserError as error:
            raise _Ended(str(error)) from error
        except Exception as error:
            raise FatalError(f"{number}: {error}") from error
        report(f"{number}  error {score:.4f}")
        return {OBJECTIVE: score}

    def on_search_end(self) -> None:
        """Closes the features; what was kept for a search that is cut off goes."""
        self._training.features.close()
        shutil.rmtree(self.project_dir, ignore_errors=True)

    def _score(self, values: Mapping[str, Any]) -> float:
        config = space.with_values(self._training.config, values)
        phases = config.phases[: len(self._phases)]
        one = dataclasses.replace(
            self._training,
            config=msgspec.structs.replace(config, phases=phases),
            checkpoints=Checkpoints(Path(self.project_dir) / "none", {}, writes=False),
        )
        state = State()
        one.fit(state)
        # What a trial leaves in TensorFlow's global graph is not wanted any more.
        tf_keras.backend.clear_session()
        assert state.best is not None and state.best.eval_brier is not None
        return state.best.eval_brier


def _told(values: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {json.dumps(value)}"
        for key, value in values.items()
    )
