"""Run folders and YAMLs of a stranger that name code, and current folders with modules of his."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostility.cases import ROOT, Case, Outcome, call, message_problem, refusal_problem, run_command

import ppxcls
from ppxcls.config import trust

PROMISE = "No code of a folder runs unless the user has agreed to run exactly this code"
_HEADER = "# Written by ppxcls: the config of the run in this folder. Edit another file.\n"
_CANARY = "canary"
_REST = "Arch: {name: MyNet, class_num: 3}\nGlobal: {device: cpu%s}\n"


def _program(folder: Path, more: str = "") -> str:
    """Returns a program that leaves a file when it runs."""
    return f"open({str(folder / _CANARY)!r}, 'a').write(__name__ + ' ')\n{more}"


def _network(folder: Path) -> str:
    more = "import ppxcls\n@ppxcls.MODELS.register\ndef MyNet(class_num=3):\n    return None\n"
    return _program(folder, more)


def _run(folder: Path, plugins: str, **files: str) -> Path:
    """Writes a run's folder that names plugins, with more files. Returns it."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(_HEADER + _REST % f", plugins: {plugins}")
    (run / "evil.py").write_text(_network(folder))
    for name, text in files.items():
        (run / name.replace("__dot__", ".")).write_text(text)
    return run


# What names code, as functions that write the folder and return what is opened.
def _list(text: str, folder: Path) -> Path:
    return _run(folder, text)


def _with_base(depth: int, folder: Path) -> Path:
    run = _run(folder, "[evil.py]")
    (run / "b0.yaml").write_text(_REST % ", plugins: [evil.py]")
    for i in range(1, depth):
        (run / f"b{i}.yaml").write_text(f"base: b{i - 1}.yaml\n")
    (run / "config.yaml").write_text(f"{_HEADER}base: b{depth - 1}.yaml\nGlobal: {{epochs: 3}}\n")
    return run


def _text(text: str, folder: Path) -> Path:
    run = _with_base(1, folder)
    (run / "config.yaml").write_text(text)
    return run


def _linked(folder: Path) -> Path:
    run = _run(folder, "[link.py]")
    (run / "link.py").symlink_to(run / "evil.py")
    return run


def _special(kind: str, folder: Path) -> Path:
    run = _run(folder, "[special.py]")
    if kind == "pipe":
        os.mkfifo(run / "special.py")
    elif kind == "folder":
        (run / "special.py").mkdir()
    elif kind == "device":
        (run / "special.py").symlink_to("/dev/zero")
    else:
        (run / "special.py").write_text("#" * (17 << 20))
    return run


def _deep_source(folder: Path) -> Path:
    run = _run(folder, "[deep.py]")
    (run / "deep.py").write_text("@x.register\ndef f(): pass\n" + "(" * 200_000)
    return run


def _trusted(change: Callable[[Path, Path], None], folder: Path) -> Path:
    """A run that the user has trusted, changed by a stranger afterwards."""
    run = _run(folder, "[evil.py]")
    (run / "evil.py").write_text("import helper, pack.part\nimport ppxcls\n")
    (run / "helper.py").write_text("x = 1\n")
    (run / "pack").mkdir()
    (run / "pack/__init__.py").write_text("")
    (run / "pack/part.py").write_text("")
    codes = [trust.read_code(file) for file in run.rglob("*.py")]
    trust.record_trust(codes)
    trust._trusted_names.clear()  # as in a new process
    change(folder, run)
    return run


def _replace(name: str, folder: Path, run: Path) -> None:
    (run / name).write_text(_program(folder))


def _move(folder: Path, run: Path) -> None:
    run.rename(folder / "other")
    (folder / "other/helper.py").write_text(_program(folder))
    run.mkdir()
    for file in (folder / "other").iterdir():
        if file.is_file():
            file.rename(run / file.name)
    (run / "pack").mkdir()
    (run / "pack/__init__.py").write_text(_program(folder))


def _compiled(folder: Path, run: Path) -> None:
    """A compiled helper that pretends to come from the trusted source, and another in the plugin's place."""
    import py_compile

    for name in ("evil", "helper"):
        source = run / f"{name}.py"
        text, times = source.read_text(), (source.stat().st_atime, source.stat().st_mtime)
        source.write_text((_program(folder) + "#" * len(text))[: max(len(text), 200)])
        cache = run / f"__pycache__/{name}.{sys.implementation.cache_tag}.pyc"
        py_compile.compile(
            str(source), str(cache), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        source.write_text(text)
        os.utime(source, times)
    (run / "evil.py").write_text("import helper, pack.part\nimport ppxcls\n# changed\n")


def _open_record(folder: Path, run: Path) -> None:  # noqa: ARG001
    """Others can write to the record, so it says nothing."""
    (folder / "state/ppxcls/trusted").chmod(0o777)


def _forged_record(folder: Path, run: Path) -> None:
    """The record is a link to a folder of the stranger."""
    record = folder / "state/ppxcls/trusted"
    record.rename(run / "trusted")
    record.symlink_to(run / "trusted")


_WAYS: dict[str, Callable[[Path], Path]] = {
    **{
        f"plugins: {text[:60]}": functools.partial(_list, text)
        for text in (
            "[evil.py]",
            "[evil]",
            "[./evil.py]",
            "[../run/evil.py]",
            "['evil.py', 'evil.py']",
            "evil.py",
            "{0: evil.py}",
            "[[evil.py]]",
            "[' evil.py']",
            "['evil.py ']",
            "[evil.PY]",
            "['run.evil']",
            "['.evil']",
            "['evil.py\\0']",
            '["evil\\u202e.py"]',
            "[~/evil.py]",
            "['file:///evil.py']",
            "['http://127.0.0.1/evil.py']",
            "[/proc/self/cwd/run/evil.py]",
            "[evil.py, no_such_module]",
            "[this]",
            "[antigravity]",
            "[idlelib.idle]",
            "[test.__main__]",
            "['os; import evil']",
            "[1, evil.py]",
            "[null, evil.py]",
            f"[{'a' * 100_000}.py]",
            f"[{', '.join(['evil.py'] * 500)}]",
        )
    },
    **{f"a chain of {n} bases": functools.partial(_with_base, n) for n in (1, 2, 5, 10, 12)},
    "a base by an absolute path": lambda folder: _text(f"base: {folder}/run/b0.yaml\n", folder),
    "a base outside of the folder": lambda folder: _text("base: ../run/b0.yaml\n", folder),
    "a base and no plugins": lambda folder: _text("base: b0.yaml\nGlobal: {plugins: {0: evil.py}}\n", folder),
    "a merge key": lambda folder: _text(
        "x: &x {plugins: [evil.py]}\nGlobal: {<<: *x, device: cpu}\nArch: {name: MyNet}\n", folder
    ),
    "an alias": lambda folder: _text(
        "Global: {plugins: &x [evil.py], trackers: *x}\nArch: {name: MyNet}\n", folder
    ),
    "plugins twice": lambda folder: _text("Global: {plugins: [], plugins: [evil.py]}\n", folder),
    "Global twice": lambda folder: _text("Global: {}\nGlobal: {plugins: [evil.py]}\n", folder),
    "plugins in Arch": lambda folder: _text("Arch: {name: Xception41, plugins: [evil.py]}\n", folder),
    "plugins at the top": lambda folder: _text("plugins: [evil.py]\nArch: {name: Xception41}\n", folder),
    "a key with a dot": lambda folder: _text("Global.plugins: [evil.py]\nArch: {name: Xception41}\n", folder),
    "a tag of Python": lambda folder: _text("Global: !!python/module:evil {}\n", folder),
    "a Python object": lambda folder: _text("Arch: !!python/object/apply:os.system ['id']\n", folder),
    "a link to the plugin": _linked,
    "a pipe": functools.partial(_special, "pipe"),
    "a folder": functools.partial(_special, "folder"),
    "a device": functools.partial(_special, "device"),
    "17 MB of code": functools.partial(_special, "large"),
    "200,000 open brackets": _deep_source,
    **{
        f"trusted code, then {name} changed": functools.partial(_trusted, functools.partial(_replace, name))
        for name in ("evil.py", "helper.py", "pack/__init__.py", "pack/part.py", "pack/new.py")
    },
    "trusted code in another folder": functools.partial(_trusted, _move),
    "compiled code beside trusted code": functools.partial(_trusted, _compiled),
    "a record that others can write": functools.partial(_trusted, _open_record),
    "a record that is a link": functools.partial(_trusted, _forged_record),
}
_VERBS: dict[str, list[str]] = {
    "train": ["train", "-c", "run"],
    "train -o": ["train", "-c", "run/config.yaml", "-o", "Global.epochs=1"],
    "train --find-lr": ["train", "--find-lr", "-c", "run"],
    "train --find-batch": ["train", "--find-batch", "-c", "run"],
    "eval": ["eval", "-c", "run"],
    "infer": ["infer", "-c", "run", "run"],
    "export": ["export", "-c", "run"],
    "check": ["check", "-c", "run"],
    "report": ["report", "run"],
    "report of two": ["report", "run", "run"],
    "serve": ["serve", "run", "--port", "0"],
    "launch train": ["launch", "--restarts", "0", "--nproc_per_node", "2", "train", "-c", "run"],
    "tools/train.py": [sys.executable, str(ROOT / "tools/train.py"), "-c", "run"],
    "tools/eval.py": [sys.executable, str(ROOT / "tools/eval.py"), "-c", "run"],
    "tools/infer.py": [sys.executable, str(ROOT / "tools/infer.py"), "-c", "run", "run"],
    "tools/export_model.py": [sys.executable, str(ROOT / "tools/export_model.py"), "-c", "run"],
    "python -m ppxcls eval in the folder": [sys.executable, "-m", "ppxcls", "eval", "-c", "."],
}
_FUNCTIONS: dict[str, Callable[[Path], Any]] = {
    "load_config": ppxcls.load_config,
    "load_config of its file": lambda run: ppxcls.load_config(run / "config.yaml"),
    "load_config with an override": lambda run: ppxcls.load_config(run, ["Global.epochs=1"]),
    "load_config with an override of the plugin's section": lambda run: ppxcls.load_config(
        run, ["Global.trackers=null", "Arch.name=MyNet"]
    ),
    "load_config of a dict with its base": lambda run: ppxcls.load_config({"base": str(run / "config.yaml")}),
    "load_config of a dict with a plugin and its base": lambda run: ppxcls.load_config(
        {"base": str(run / "config.yaml"), "Global": {"epochs": 1}}
    ),
    "load": ppxcls.load,
    "report": ppxcls.report,
    "find_lr": ppxcls.find_lr,
    "find_batch": ppxcls.find_batch,
    "serve": lambda run: ppxcls.serve(run, port=0),
}
_SHADOWS = (
    *("__future__", "argparse", "json", "logging", "random", "sitecustomize", "typing"),
    *("numpy", "yaml", "easydict", "paddle", "cv2", "numba", "tqdm"),
)
_SHADOWED_COMMANDS: dict[str, list[str]] = {
    "python -m ppxcls list": [sys.executable, "-m", "ppxcls", "list"],
    "tools/train.py": [sys.executable, str(ROOT / "tools/train.py"), "-c", "no.yaml"],
}


def cases() -> Iterator[Case]:
    """Returns the cases: ways to name code, functions and verbs that read it, and current folders."""
    for name, way in _WAYS.items():
        yield Case(f"load_config: {name}", functools.partial(_loads, way), is_quick=True)
    for name, function in _FUNCTIONS.items():
        yield Case(f"ppxcls.{name}", functools.partial(_calls, function), is_quick=True)
    ways = ("plugins: [evil.py]", "plugins: [evil]", "a chain of 2 bases")
    for verb, words in _VERBS.items():
        for name in ways:
            run = functools.partial(_runs, words, _WAYS[name])
            yield Case(f"{verb}: {name}", run)
    yield Case("fit that goes on with a stranger's YAML", _fit)
    for name, words in _SHADOWED_COMMANDS.items():
        for module in _SHADOWS:
            yield Case(f"{name} beside a {module}.py", functools.partial(_shadowed, words, (module,)))
    everything = tuple({*sys.stdlib_module_names, *_SHADOWS, "matplotlib", "jinja2", "h5py", "PIL", "ppxcls"})
    # Before Python reads the package's first line under -m, it has imported these from the current folder.
    # SECURITY.md says so.
    code = "import runpy, sys; print(*sys.modules)"
    # S603: runs Python with a line of this file.
    result = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True)  # noqa: S603
    without_package = tuple(set(everything) - {"ppxcls", *result.stdout.decode().split()})
    launch = ["launch", "--restarts", "0", "--nproc_per_node", "2", "train", "-c", "no.yaml"]
    for name, words, modules in (
        ("python -m ppxcls launch", [sys.executable, "-m", "ppxcls", *launch], without_package),
        ("ppxcls launch", launch, everything),
        ("ppxcls doctor", ["doctor"], everything),
        ("python -m ppxcls --version", [sys.executable, "-m", "ppxcls", "--version"], without_package),
        ("tools/eval.py", [sys.executable, str(ROOT / "tools/eval.py"), "-c", "no.yaml"], everything),
    ):
        yield Case(f"{name} beside all modules", functools.partial(_shadowed, words, modules))
    yield Case("a training with loader processes beside all modules", functools.partial(_trains, everything))
    yield Case("import ppxcls in a notebook's folder", functools.partial(_notebook, _SHADOWS))
    yield Case("numba's settings in the current folder", _numba_settings)
    yield Case("matplotlib's settings in the current folder", _matplotlib_settings)


@contextlib.contextmanager
def _new_user(folder: Path) -> Iterator[None]:
    """Runs a block as a user who has trusted nothing, in a process that has imported no plugin."""
    previous = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    trust._trusted_names.clear()
    names = set(sys.modules)
    current_folder = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(current_folder)
        for name in {"evil", "helper", "pack", "special", "link", "deep"} & (set(sys.modules) - names):
            del sys.modules[name]
        os.environ.pop("XDG_STATE_HOME")
        if previous is not None:
            os.environ["XDG_STATE_HOME"] = previous


def _problem(outcome: Outcome, folder: Path) -> str | None:
    """Returns what broke the promise: code ran, or the message is not one line."""
    if (folder / _CANARY).exists():
        return f"code ran: {(folder / _CANARY).read_text()[:100]}"
    return refusal_problem(outcome)


def _loads(way: Callable[[Path], Path], folder: Path) -> tuple[Outcome, str | None]:
    with _new_user(folder):
        run = way(folder)
        modules = {"this", "antigravity", "idlelib.idle", "test.__main__"} & set(sys.modules)
        outcome = call(ppxcls.load_config, run)
        if {"this", "antigravity", "idlelib.idle", "test.__main__"} & set(sys.modules) - modules:
            return outcome, "an installed module was imported"
        return outcome, _problem(outcome, folder)


def _calls(function: Callable[[Path], Any], folder: Path) -> tuple[Outcome, str | None]:
    with _new_user(folder):
        outcome = call(function, _run(folder, "[evil.py]"))
        return outcome, _problem(outcome, folder) or message_problem(outcome.errors, "--trust")


def _runs(words: list[str], way: Callable[[Path], Path], folder: Path) -> tuple[Outcome, str | None]:
    run = way(folder)
    place = run if words[-1] == "." else folder
    outcome = run_command(words, place, variables={"XDG_STATE_HOME": str(folder / "state")})
    if "launch" in words:  # the launcher prints lines of its own
        problem = None if "--trust" in outcome.errors + outcome.output else "no message"
        return outcome, "accepted" if outcome.code == 0 else _problem_of_canary(folder) or problem
    return outcome, _problem(outcome, folder) or message_problem(outcome.errors, "--trust", "MyNet")


def _problem_of_canary(folder: Path) -> str | None:
    file = folder / _CANARY
    return f"code ran: {file.read_text()[:100]}" if file.exists() else None


def _fit(folder: Path) -> tuple[Outcome, str | None]:
    """The output folder is a stranger's, with YAML files that name a plugin."""
    import cv2
    import numpy as np

    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(6):
            image = np.random.default_rng(i).integers(0, 255, (40, 40, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / f"photos/{label}/{i}.png"), image)
    output = folder / "out"
    output.mkdir()
    (output / "evil.py").write_text(_program(folder))
    for name in ("train.yaml", "head.yaml", "photographs.yaml", "config.yaml"):
        (output / name).write_text("Global: {plugins: [evil.py], device: cpu}\nArch: {name: Xception41}\n")
    words = ["fit", "photos", "--output", "out", "--minutes", "0.01", "--device", "cpu"]
    outcome = run_command(words, folder, variables={"XDG_STATE_HOME": str(folder / "state")})
    return outcome, _problem_of_canary(folder)


def _shadowed(words: list[str], modules: tuple[str, ...], folder: Path) -> tuple[Outcome, str | None]:
    place = folder / "strangers"
    place.mkdir()
    for module in modules:
        (place / f"{module}.py").write_text(_program(folder, "raise SystemExit('hostile')\n"))
    outcome = run_command(words, place)
    if "hostile" in outcome.errors:
        return outcome, f"code ran: {outcome.errors[-100:]}"
    is_found = "no.yaml: no such config file" in outcome.errors + outcome.output or "no.yaml" not in words
    return outcome, _problem_of_canary(folder) or (
        None if is_found else f"it failed: {outcome.errors[-200:]}"
    )


def _data(folder: Path) -> str:
    """Writes a small data set. Returns a YAML that trains on it with loader processes."""
    import json

    from tests.conftest import small_config, write_images

    write_images(folder / "data", 8)
    write_images(folder / "data", 4, seed=1, name="val")
    content = small_config(folder / "data", folder / "output")
    for section in content["DataLoader"].values():
        section["loader"] = {"num_workers": 2, "num_processes": 1}
    return json.dumps(content)


def _trains(modules: tuple[str, ...], folder: Path) -> tuple[Outcome, str | None]:
    place = folder / "strangers"
    place.mkdir()
    text = _data(folder)
    for module in modules:
        (place / f"{module}.py").write_text(_program(folder, "raise SystemExit('hostile')\n"))
    (place / "my.yaml").write_text(text)
    outcome = run_command(["train", "-c", "my.yaml"], place)
    has_report = (folder / "output/Xception41/report.html").exists()
    is_trained = outcome.code == 0 and has_report
    return outcome, _problem_of_canary(folder) or (
        None if is_trained else f"it failed: {outcome.errors[-200:]}"
    )


def _notebook(modules: tuple[str, ...], folder: Path) -> tuple[Outcome, str | None]:
    """In a notebook, the current folder is first on the path once Python itself has started."""
    code = "import sys; sys.path.insert(0, ''); import ppxcls; ppxcls.load_config, ppxcls.build_model"
    return _shadowed([sys.executable, "-P", "-c", code], modules, folder)


def _numba_settings(folder: Path) -> tuple[Outcome, str | None]:
    """numba would unpickle an index in the folder that the settings name."""
    (folder / ".numba_config.yaml").write_text("cache_dir: strangers\ndebug_cache: 1\n")
    code = (
        "from ppxcls.data.pixel_kernels import __name__\n"
        "from ppxcls.system.kernels import numba_module\n"
        "config = numba_module().config; config.reload_config()\n"
        "print([config.CACHE_DIR, config.DEBUG_CACHE])"
    )
    outcome = run_command([sys.executable, "-P", "-c", code], folder, variables={"NUMBA_CACHE_DIR": None})
    return outcome, None if outcome.output.strip() == "['', 0]" else outcome.output + outcome.errors[-200:]


def _matplotlib_settings(folder: Path) -> tuple[Outcome, str | None]:
    (folder / "matplotlibrc").write_text("backend: module://strangers\ntext.usetex: True\n")
    code = (
        "from ppxcls.reports.curves import pyplot\n"
        "print(pyplot().get_backend(), pyplot().rcParams['text.usetex'])"
    )
    outcome = run_command([sys.executable, "-P", "-c", code], folder)
    return outcome, None if outcome.output.strip() == "agg False" else outcome.output + outcome.errors[-200:]
