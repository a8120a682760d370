"""``ppxcls tune``: the same trials with and without interruptions, pruning, failures, and a killed study."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import ppxcls
from ppxcls.cli import parser_for
from ppxcls.cli.verbs import VERBS
from ppxcls.config.load import RUN_CONFIG_HEADER
from ppxcls.reports.study_file import read_study, runs_of_study
from ppxcls.system.sealed_json import sealed
from ppxcls.tuning import study, trial_process
from tests.conftest import ROOT, SMALL_NETWORK, run_tool

pytest.importorskip("optuna", reason="Optuna is not installed")
RATE = "Optimizer.lr.learning_rate"
RANGE = f"{RATE}=loguniform(1e-4,1e-1)"
BATCH = "DataLoader.Train.sampler.batch_size"
EPOCHS = 5


class Trainings:
    """Stands in for the processes of the trials. The figure is a function of the rate and the epoch.

    Attributes:
        rates: rate of each training that was started.
        commands: words of the commands.
        codes: exit code by the number of the start, from 1; others are 0.
        ends: cause by the number of the start, for a training that saves and ends before its first epoch.
        end_code: exit code of such a training.
        interrupted_start: start after which a Ctrl-C is received; 0 for none.
        signalled_start: start at whose end SIGTERM is received; 0 for none.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.commands: list[Sequence[str]] = []
        self.codes: dict[int, int] = {}
        self.ends: dict[int, str] = {}
        self.end_code = 75
        self.interrupted_start = 0
        self.signalled_start = 0
        self.figure: Callable[[float, int], float] = lambda rate, epoch: (
            1 - abs(math.log10(rate) + 2) / 4 + epoch / 100
        )

    def __call__(
        self,
        words: Sequence[str],
        output: Path,
        *,
        lines: Any,
        observe: Any,
        end_time: float,
        is_stopped: Any,
    ) -> trial_process.TrialEnd:
        values = dict(word.split("=", 1) for word in words if "=" in word)
        rate = float(values[RATE])
        self.rates.append(rate)
        self.commands.append(words)
        start = len(self.rates)
        if start in self.ends:
            return trial_process.TrialEnd(self.end_code, self.ends[start])
        if self.codes.get(start):
            output.write_text("a line\nerror: the loss is not finite\n")
            return trial_process.TrialEnd(self.codes[start], "")
        for epoch in range(1, EPOCHS + 1):
            if math.isfinite(self.figure(rate, epoch)) and observe(epoch, self.figure(rate, epoch)):
                return trial_process.TrialEnd(75, trial_process.WORSE)
            if start == self.interrupted_start and epoch == 3:
                raise KeyboardInterrupt
        if start == self.signalled_start:
            os.kill(os.getpid(), signal.SIGTERM)
        return trial_process.TrialEnd(0, "")


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    stand_in = Trainings()
    monkeypatch.setattr(trial_process, "run_process", stand_in)
    return stand_in


@pytest.fixture
def file(small: Callable[..., Path]) -> Path:
    return small(**{"Global.epochs": EPOCHS})


def test_an_interrupted_study_has_the_same_trials(file: Path, tmp_path: Path, trainings: Trainings) -> None:
    whole = ppxcls.tune(file, [RANGE], trials=14, output=tmp_path / "whole")
    rates = list(trainings.rates)
    assert len(set(rates)) == 14
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    trainings.rates.clear()
    trainings.interrupted_start = 12
    with pytest.raises(KeyboardInterrupt):
        ppxcls.tune(file, [RANGE], trials=14, output=tmp_path / "parts")
    assert read_study(tmp_path / "parts").trials[-1].state == "in progress"
    parts = ppxcls.tune(file, [RANGE], trials=14, output=tmp_path / "parts")
    assert trainings.rates == [*rates[:12], *rates[11:]]  # trial 12 twice
    assert read_study(tmp_path / "parts") == read_study(tmp_path / "whole")
    assert (parts.trial, parts.figure) == (whole.trial, whole.figure)
    resumed = [words[-1] for words in trainings.commands[-3:]]
    assert resumed == ["Global.checkpoints=auto", "Global.checkpoints=null", "Global.checkpoints=null"]
    trainings.rates.clear()
    ppxcls.tune(file, [RANGE], trials=3, output=tmp_path / "other", seed=1)
    assert not set(trainings.rates) & set(rates)


def test_the_best_trial_is_the_result(file: Path, tmp_path: Path, trainings: Trainings) -> None:
    """The figure is largest at a rate of 0.01. The median rule is computed anew, from the figures."""
    result = ppxcls.tune(file, [RANGE, f"{BATCH}=choice(2,4)"], trials=12, overrides=["Global.seed=7"])
    assert result.folder == (tmp_path / "output/tune").resolve()
    trials = read_study(result.folder).trials
    for number, trial in enumerate(trials):
        figures = list(trial.figures.values())
        for epoch in range(1, len(figures) + 1):
            others = sorted(t.figures[epoch] for t in trials[:number] if epoch in t.figures)
            middle = len(others) // 2
            median = 0 if not others else (others[middle] + others[~middle]) / 2
            complete_count = sum(t.state == "complete" for t in trials[:number])
            is_bad = complete_count >= 5 and epoch > EPOCHS // 5 and max(figures[:epoch]) < median
            assert is_bad == (trial.state == "pruned" and epoch == len(figures)), (number, epoch)
    assert 0 < result.counts["pruned"] < 8
    distances = {abs(math.log10(rate) + 2): rate for rate in trainings.rates}
    best_rate = distances[min(distances)]
    assert result.figure == max(max(t.figures.values()) for t in trials)
    config = ppxcls.load_config(result.config)
    assert config.Optimizer.lr.learning_rate == best_rate
    assert config.Global.seed == 7
    assert config.Global.output_dir == str(tmp_path / "output")
    assert config.Global.save_interval == 1
    assert f"{RATE}={best_rate}" in result.overrides
    assert all("Global.seed=7" in words for words in trainings.commands)


@pytest.mark.parametrize("metric", ["loss", "EER", "group_EER"])
def test_a_smaller_error_is_better(metric: str, file: Path, trainings: Trainings) -> None:
    overrides = [f"Global.best_metric={metric}", "Arch.class_num=2", "Metric.Eval=[{TopkAcc: {}}, {EER: {}}]"]
    result = ppxcls.tune(file, [RANGE], trials=6, overrides=overrides, prune=False)
    assert result.metric == metric
    distances = [abs(math.log10(rate) + 2) for rate in trainings.rates]
    assert distances[result.trial - 1] == max(distances)
    assert result.counts["complete"] == 6


def test_a_stopped_trial_is_continued(file: Path, trainings: Trainings) -> None:
    """After a signal to the study, to the trial alone, and after the hours."""
    trainings.ends = {2: trial_process.STOPPED, 3: "", 4: trial_process.TIME_OVER}
    for _ in range(2):
        with pytest.raises(ppxcls.Preempted, match="in trial 2, which has saved; the same command continues"):
            ppxcls.tune(file, [RANGE], trials=2)
    result = ppxcls.tune(file, [RANGE], trials=2, hours=1)
    assert result.counts == {"complete": 1, "pruned": 0, "failed": 0, "in progress": 1}
    assert ppxcls.tune(file, [RANGE], trials=2).counts["complete"] == 2
    assert trainings.rates[1:] == [trainings.rates[1]] * 4


def test_a_signal_between_two_trials_starts_no_other(file: Path, trainings: Trainings) -> None:
    trainings.signalled_start = 2
    with pytest.raises(ppxcls.Preempted, match="stopped by SIGTERM before trial 3; the same command"):
        ppxcls.tune(file, [RANGE], trials=3)
    assert len(trainings.rates) == 2
    assert ppxcls.tune(file, [RANGE], trials=2).counts["complete"] == 2


def test_a_signal_before_the_training_has_saved_nothing(file: Path, trainings: Trainings) -> None:
    trainings.ends = {1: trial_process.STOPPED}
    trainings.end_code = -signal.SIGTERM
    with pytest.raises(ppxcls.Preempted, match="stopped by .* in trial 1; the same command continues"):
        ppxcls.tune(file, [RANGE], trials=1)


def test_a_yaml_that_is_edited_changes_no_trial(
    file: Path, tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The YAML has a base and a relative path, which mean the same in the study's folder."""
    (tmp_path / "yamls/images").mkdir(parents=True)
    child = tmp_path / "yamls/child.yaml"
    dataset = "DataLoader: {Train: {dataset: {image_root: images}}}"
    child.write_text(f"base: ../{file.name}\nGlobal: {{seed: 3}}\n{dataset}\n")
    overrides = ["Global.output_dir=study"]
    monkeypatch.chdir(tmp_path)
    before = ppxcls.load_config(child, overrides).to_yaml(has_absolute_paths=True)
    assert f"image_root: {tmp_path}/yamls/images\n" in before
    edited: list[float] = []

    def edit(rate: float, epoch: int) -> float:
        child.write_text("base: photographs\n")
        edited.append(rate)
        return rate

    trainings.figure = edit
    result = ppxcls.tune(child, [RANGE], trials=3, overrides=overrides)
    assert len(edited) > 3
    for words in trainings.commands:
        path = words[words.index("-c") + 1]
        assert ppxcls.load_config(path).to_yaml(has_absolute_paths=True) == before
    config = ppxcls.load_config(result.config)
    assert (config.Global.seed, config.Global.epochs) == (3, EPOCHS)
    with pytest.raises(ppxcls.DataError, match="another config or overrides"):
        ppxcls.tune(child, [RANGE], trials=3, overrides=overrides)


def test_a_strangers_run_chooses_no_folder(file: Path, tmp_path: Path, trainings: Trainings) -> None:
    """The runs of the trials are the user's own, so they would be trusted to write there."""
    run = tmp_path / "downloads/SmallNetwork"
    run.mkdir(parents=True)
    config = ppxcls.load_config(file, [f"Global.save_inference_dir={tmp_path}/home"])
    (run / "config.yaml").write_text(RUN_CONFIG_HEADER + config.to_yaml(is_run=True))
    with pytest.raises(ppxcls.ConfigError, match="a folder to write to that is not in the run's folder"):
        ppxcls.tune(run, [RANGE], trials=1)
    result = ppxcls.tune(run, [RANGE], trials=1, overrides=["Global.save_inference_dir=inference"])
    assert result.folder == (tmp_path / "downloads/tune").resolve()


def test_failed_trials_dont_end_the_study(file: Path, trainings: Trainings) -> None:
    trainings.codes = {1: 1, 3: -9}
    result = ppxcls.tune(file, [RANGE], trials=4)
    trials = read_study(result.folder).trials
    assert [trial.state for trial in trials] == ["failed", "complete", "failed", "complete"]
    assert trials[0].reason == "exit code 1: error: the loss is not finite"
    assert trials[2].reason.startswith("signal 9, as if the machine had no memory left")


def test_if_all_trials_fail_it_says_so(file: Path, tmp_path: Path, trainings: Trainings) -> None:
    trainings.codes = dict.fromkeys(range(1, 3), 1)
    with pytest.raises(
        ppxcls.TrainingError, match="all 2 trials have failed, the last one with: exit code 1"
    ):
        ppxcls.tune(file, [RANGE], trials=2)
    trainings.figure = lambda rate, epoch: math.nan
    with pytest.raises(ppxcls.TrainingError, match="no evaluation gave a finite figure"):
        ppxcls.tune(file, [RANGE], trials=1, output=tmp_path / "nan")


def test_values_that_dont_fit_together_fail_alone(
    file: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value is valid alone, so only the trial with both is refused, before its process."""
    load_config = study.load_config

    def strict(path: Path, overrides: Sequence[str], *, trust: bool) -> ppxcls.Config:
        if {f"{BATCH}=2", "Global.update_freq=2"} <= set(overrides):
            raise ppxcls.ConfigError("these two")
        return load_config(path, overrides, trust=trust)

    monkeypatch.setattr(study, "load_config", strict)
    ranges = [RANGE, f"{BATCH}=choice(2,4)", "Global.update_freq=choice(1,2)"]
    folder = ppxcls.tune(file, ranges, trials=8, prune=False).folder
    trials = read_study(folder).trials
    refused = [t.parameters[BATCH] == 0 and t.parameters["Global.update_freq"] == 1 for t in trials]
    assert 0 < sum(refused) < 8
    assert [t.state == "failed" and t.reason == "these two" for t in trials] == refused
    assert len(trainings.commands) == 8 - sum(refused)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"ranges": ["Optimizer.lr.learning_rat=uniform(0,1)"]}, "did you mean 'learning_rate'"),
        ({"ranges": [f"{BATCH}=choice(2,x)"]}, "expected an integer at least 1, received 'x'"),
        ({"ranges": ["Global.epochs=uniform(1,4)"]}, "expected an integer"),
        ({"ranges": ["Global.output_dir=choice(a,b)"]}, "the study sets Global.output_dir"),
        ({"ranges": ["Global.best_metric=choice(top1,loss)"]}, "trials are compared by loss, not by top1"),
        ({"overrides": ["Global.eval_during_train=false"]}, "but Global.eval_during_train is false"),
        ({"trials": 0}, "--trials: expected a number from 1, received 0"),
        ({"hours": math.nan}, "--hours: expected a number above 0"),
        ({"seed": -1}, "--seed: expected a number from 0"),
    ],
)
def test_a_wrong_search_starts_no_trial(
    file: Path, tmp_path: Path, trainings: Trainings, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message) as error:
        ppxcls.tune(file, **{"ranges": [RANGE], **words})
    assert "\n" not in str(error.value)
    assert not trainings.commands
    assert not (tmp_path / "output").exists()


def test_without_optuna_the_error_names_the_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ppxcls.ConfigError, match=r"pip install 'ppxcls\[tune\]'"):
        ppxcls.tune(file, [RANGE])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"ranges": [f"{RATE}=loguniform(1e-4,1e-2)"]}, "another ranges"),
        ({"overrides": ["Global.epochs=4"]}, "another config or overrides"),
        ({"seed": 3}, "another seed"),
    ],
)
def test_another_search_does_not_continue_a_study(
    file: Path, trainings: Trainings, words: dict[str, Any], message: str
) -> None:
    ppxcls.tune(file, [RANGE], trials=1)
    with pytest.raises(ppxcls.DataError, match=message):
        ppxcls.tune(file, **{"ranges": [RANGE], "trials": 1, **words})


def test_a_strangers_study_is_checked(file: Path, trainings: Trainings) -> None:
    folder = ppxcls.tune(file, [RANGE], trials=1).folder
    content = json.loads((folder / "study.json").read_text())
    del content["sha256"]
    for changes in (
        {"trials": [{**content["trials"][0], "state": "good"}]},
        {"trials": [{**content["trials"][0], "figures": {"x": 1.0}}]},
        {"trials": [{**content["trials"][0], "parameters": {}}]},
        {"trials": [{**content["trials"][0], "parameters": []}]},
        {"trials": [{**content["trials"][0], "figures": []}]},
        {"trials": [{**content["trials"][0], "figures": {}}]},
        {"trials": [{**content["trials"][0], "state": "in progress"}, content["trials"][0]]},
        {"trials": [{**content["trials"][0], "state": []}]},
        {"trials": [3]},
        {"trials": {}},
        {"ranges": [RATE]},
        {"metric": []},
        {"trials": 3},
        {"seed": "0"},
        {"format": 99},
        {"more": 1},
    ):
        (folder / "study.json").write_text(json.dumps(sealed({**content, **changes})))
        with pytest.raises(ppxcls.DataError, match="not the study of ppxcls tune"):
            read_study(folder)
    trial = {**content["trials"][0], "parameters": {RATE: 0.2}}
    (folder / "study.json").write_text(json.dumps(sealed({**content, "trials": [trial]})))
    with pytest.raises(ppxcls.DataError, match=r"study\.json: trial 1 has a value outside of its range"):
        ppxcls.tune(file, [RANGE], trials=2)
    (folder / "study.json").write_text(json.dumps({**content, "sha256": "0"}))
    with pytest.raises(ppxcls.DataError, match="its digest is wrong"):
        ppxcls.tune(file, [RANGE], trials=1)
    (folder / "study.json").unlink()
    with pytest.raises(ppxcls.DataError, match=r"has trials, but no study\.json"):
        ppxcls.tune(file, [RANGE], trials=1)


@pytest.mark.parametrize("index", [9, -1, 0.5])
def test_an_index_that_is_no_choice_is_one_line(file: Path, trainings: Trainings, index: float) -> None:
    ranges = [f"{BATCH}=choice(2,4)", RANGE]
    folder = ppxcls.tune(file, ranges, trials=1).folder
    content = json.loads((folder / "study.json").read_text())
    del content["sha256"]
    content["trials"][0]["parameters"][BATCH] = index
    (folder / "study.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(ppxcls.DataError, match="trial 1 has a value outside of its range"):
        ppxcls.tune(file, ranges, trials=2)


def verb(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs ``ppxcls ...`` in this process."""
    program, name, *rest = words
    assert program == "ppxcls"
    monkeypatch.setattr(sys, "argv", [f"ppxcls {name}", *rest])
    VERBS[name].function(parser_for(VERBS[name].description))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--gpus '0", 'error: --launch "--gpus \'0": No closing quotation'),
        ("--nnodes 2", "this host's name resolves to 127.0.0.1, so the other nodes can't reach it"),
    ],
)
def test_wrong_options_of_the_launcher_are_one_line(
    options: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "127.0.0.1")
    words = ["ppxcls", "tune", "-c", "gone.yaml", "--set", RANGE, "--launch", options]
    with pytest.raises(SystemExit) as end:
        verb(words, monkeypatch)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_examples_of_the_help(
    tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are parsed, and their keys exist in the YAML of ``ppxcls fit``. The trainings are stand-ins.

    The page replaces a link, because a stranger may have made the study's folder.
    """
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output/photos").mkdir(parents=True)
    arch = f"Arch: {{name: SmallNetwork, class_num: 2}}\nGlobal: {{plugins: [{SMALL_NETWORK}]"
    (tmp_path / "output/photos/train.yaml").write_text(
        f"base: photographs\n{arch}, output_dir: {tmp_path}/output/photos}}\n"
    )
    search, page = map(shlex.split, VERBS["tune"].examples)
    verb(search, monkeypatch)
    assert "trials: 2 complete" in capsys.readouterr().out
    folder = tmp_path / page[-1]
    assert len(read_study(folder).trials) == int(search[search.index("--trials") + 1])
    run = folder / "trial_001/SmallNetwork"
    run.mkdir()
    (run / "config.yaml").write_text(RUN_CONFIG_HEADER + (folder / "best.yaml").read_text())
    (tmp_path / "target").write_text("mine")
    (folder / "comparison.html").symlink_to(tmp_path / "target")
    verb(page, monkeypatch)
    assert (tmp_path / "target").read_text() == "mine"
    assert "compares trials by top1: 2 complete" in (folder / "comparison.html").read_text()
    (folder / "comparison.html").unlink()
    (tmp_path / "named.html").symlink_to(tmp_path / "target")
    assert ppxcls.report(folder, tmp_path / "named.html") == tmp_path / "named.html"
    assert "compares trials" in (tmp_path / "target").read_text()


def test_each_evaluation_is_reported_once(tmp_path: Path) -> None:
    """Also if the file is replaced by a shorter one, and while a line is only half written."""
    metrics = tmp_path / "metrics.jsonl"
    lines = trial_process.EvaluationLines(metrics, "top1")
    assert lines.new_figures() == []
    rows = [
        '{"kind": "train", "epoch": 1, "step": 1, "top1": 0.9}',
        '{"kind": "eval", "epoch": 1, "step": 3, "top1": 0.5}',
        '{"kind": "eval", "epoch": 2, "step": 6, "top1": null}',
        "not json",
        '{"kind": "eval", "epoch": 3, "step": 9, "top1": 0.75}',
    ]
    metrics.write_text("\n".join(rows[:4]) + "\n" + rows[4][:20])
    assert lines.new_figures() == [(1, 0.5)]
    with open(metrics, "a") as stream:
        stream.write(rows[4][20:] + "\n")
    assert lines.new_figures() == [(3, 0.75)]
    (tmp_path / "new").write_text(rows[1] + "\n" + rows[4].replace("3,", "4,", 1) + "\n")
    (tmp_path / "new").replace(metrics)
    assert lines.new_figures() == [(4, 0.75)]


def test_a_killed_study_continues_its_trial(small: Callable[..., Path], tmp_path: Path) -> None:
    """The process of the trial saves when the study is killed, and the same command resumes it."""
    pytest.importorskip("matplotlib")
    keys = {"Global.epochs": 12, "Global.save_interval_steps": 1, "Global.device": "cpu"}
    words = ["tune", "-c", str(small(**keys)), "--set", f"{RATE}=choice(0.01,0.02)", "--trials", "1"]
    folder = tmp_path / "output/tune"
    metrics = folder / "trial_001/SmallNetwork/metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "ppxcls", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not (metrics.exists() and b'"eval"' in metrics.read_bytes()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    result = run_tool(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "trial 1 of 1 continues" in result.stdout
    assert "best trial: 1 (top1 " in result.stdout
    assert "Resumed" in (folder / "trial_001/output.log").read_text()
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figures = {row["epoch"]: row["top1"] for row in rows if row["kind"] == "eval"}
    (trial,) = read_study(folder).trials
    assert trial.state == "complete"
    assert trial.figures == figures
    assert list(figures) == list(range(1, 13))
    assert runs_of_study(folder) == [metrics.parent]
    assert ppxcls.report(folder) == folder / "comparison.html"
    assert (
        "compares trials by top1: 1 complete. The best one is trial 1"
        in (folder / "comparison.html").read_text()
    )
