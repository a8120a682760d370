"""Asks Optuna for the parameters of a trial, and for an early end of a trial.

The trials are in ``study.json``, not in a storage of Optuna. So an interrupted study needs no data base, and
reading a stranger's study unpickles nothing. Each question gets a new sampler, seeded by the study's seed and
the number of the trial. So an interrupted study asks for the same trials as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppxcls.config.checks import ConfigError
from ppxcls.reports.study_file import COMPLETE, FAILED, PRUNED, Study, Trial
from ppxcls.tuning.search_range import SearchRange

_COMPLETE_TRIALS_FIRST = 5  # trials that are never ended early


def require_optuna() -> Any:
    """Imports Optuna, and makes it silent.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("Optuna is not installed: pip install 'ppxcls[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Suggestion:
    """A trial that Optuna follows.

    Args:
        study: study with the trials before this one.
        ranges: ranges of the searched keys.
        number: number of the trial, from 1.
        parameters: parameters of a trial that is continued; None to ask for new ones.
        warmup_epochs: epochs whose evaluations don't end a trial.
        is_pruned: False to end no trial early.

    Attributes:
        parameters: parameter of each searched key.
    """

    def __init__(
        self,
        study: Study,
        ranges: Sequence[SearchRange],
        *,
        number: int,
        parameters: dict[str, float] | None,
        warmup_epochs: int,
        is_pruned: bool,
    ) -> None:
        optuna = require_optuna()
        distributions = {item.key: _distribution(optuna, item) for item in ranges}
        seed = int(np.random.SeedSequence((study.seed, number)).generate_state(1)[0])
        pruner = optuna.pruners.NopPruner()
        if is_pruned:
            pruner = optuna.pruners.MedianPruner(_COMPLETE_TRIALS_FIRST, n_warmup_steps=warmup_epochs + 1)
        optuna_study = optuna.create_study(
            direction="maximize" if study.larger_is_better else "minimize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=pruner,
        )
        for trial in study.trials[: number - 1]:
            optuna_study.add_trial(_finished_trial(optuna, study, trial, distributions))
        if parameters is not None:
            optuna_study.enqueue_trial(parameters)
        self._trial = optuna_study.ask(distributions)
        self.parameters: dict[str, float] = dict(self._trial.params)

    def is_over(self, epoch: int, figure: float) -> bool:
        """Reports the figure of an epoch. Returns True if others were better, so the trial should end."""
        self._trial.report(figure, epoch)
        return bool(self._trial.should_prune())


def _distribution(optuna: Any, item: SearchRange) -> Any:
    if item.choices:
        return optuna.distributions.CategoricalDistribution(tuple(range(len(item.choices))))
    if item.kind == "int":
        return optuna.distributions.IntDistribution(int(item.low), int(item.high))
    return optuna.distributions.FloatDistribution(item.low, item.high, log=item.kind == "loguniform")


def _finished_trial(optuna: Any, study: Study, trial: Trial, distributions: dict[str, Any]) -> Any:
    states = optuna.trial.TrialState
    state = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}[trial.state]
    return optuna.trial.create_trial(
        state=state,
        value=None if trial.state == FAILED else study.best_figure(trial),
        params=trial.parameters,
        distributions=distributions,
        intermediate_values=trial.figures,
    )
