"""Compares ``Global.early_stop`` with the epochs and evaluations of the run."""

from __future__ import annotations

from ppxcls.config.sections import Config


def check_early_stop(config: Config) -> None:
    """Refuses an early stop that can't happen, because no evaluation counts.

    It is for what trains. Other verbs may take a run's config without its data or with other epochs.

    Raises:
        ConfigError: the run has no evaluations, or all of them are before ``start_epoch``.
    """
    section, epochs = config.Global.early_stop, config.Global.epochs
    if section is None:
        return
    where = config.where("Global.early_stop")
    if section.start_epoch > epochs:
        raise (where / "start_epoch").error(
            f"expected at most {epochs}, the last epoch (Global.epochs), received {section.start_epoch}"
        )
    if reason := reason_for_no_evaluation(config):
        raise where.error(f"expected a run with evaluations, or null, but {reason}")


def reason_for_no_evaluation(config: Config) -> str | None:
    """Returns the reason why the training is never evaluated; None if it is."""
    section, loaders = config.Global, config.DataLoader
    if not section.eval_during_train:
        return "Global.eval_during_train is false"
    if section.start_eval_epoch > section.epochs:
        return f"Global.start_eval_epoch, {section.start_eval_epoch}, is after the last epoch"
    if loaders and loaders.Train and not loaders.Eval:
        return "there is no DataLoader.Eval"
    return None
