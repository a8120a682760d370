"""Plugins run if the user has agreed to run exactly this code. ``scripts/hostility/run_folders.py`` has the attacks."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ppxcls
from ppxcls.config import plugins, trust
from ppxcls.config.plugin_modules import installed_spec
from tests.conftest import run_tool

Texts = Callable[[], list[str]]
COUNTED = "import builtins\nbuiltins.runs_of_a_plugin = getattr(builtins, 'runs_of_a_plugin', 0) + 1\n"


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user who has agreed to nothing, in a process that has imported no plugin. Returns the state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "_trusted_names", set())
    monkeypatch.setattr(plugins, "_FINDER", plugins.PluginFinder())
    monkeypatch.setattr(plugins, "_MODULE_NAMES", {})
    monkeypatch.setattr(plugins, "_IMPORTED_NAMES", {})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    trust._warn_once.cache_clear()
    modules = dict(sys.modules)
    yield tmp_path / "state/ppxcls/trusted"
    for name in sys.modules.keys() - modules.keys():
        if name.startswith("part"):
            del sys.modules[name]
    vars(sys.modules["builtins"]).pop("runs_of_a_plugin", None)


def runs() -> int:
    return int(getattr(sys.modules["builtins"], "runs_of_a_plugin", 0))


def new_process() -> None:
    """Forgets what only a process knows."""
    trust._trusted_names.clear()
    plugins._MODULE_NAMES.clear()
    plugins._FINDER.modules = {}
    for name in list(sys.modules):
        if name.startswith("part"):
            del sys.modules[name]


def yaml_with(folder: Path, names: str, more: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "mine.yaml"
    file.write_text(f"Global:\n  device: cpu\n  plugins: {names}\nArch: {{name: Xception41}}\n{more}")
    return file


def test_the_word_is_given_once(tmp_path: Path, user: Path) -> None:
    file = yaml_with(tmp_path / "a", "[part_a.py]")
    plugin = tmp_path / "a/part_a.py"
    plugin.write_text(
        COUNTED + "import ppxcls\n@ppxcls.MODELS.register()\n@staticmethod\ndef Xception41(): ...\n"
    )
    with pytest.raises(ppxcls.ConfigError) as error:
        ppxcls.load_config(file)
    assert str(error.value) == (
        f"{file}:3: Global.plugins.0: code that came with the config has not run: {plugin}; "
        "Arch.name 'Xception41' would come from it. If you know this code, add --trust, which is remembered "
        "(in Python: trust=True)"
    )
    plugin.write_text(COUNTED)
    assert runs() == 0
    ppxcls.load_config(file, trust=True)
    assert runs() == 1
    assert [stat.S_IMODE(path.stat().st_mode) for path in (user, *user.iterdir())] == [0o700, 0o600]
    assert next(user.iterdir()).read_text() == f"{plugin}\n"
    new_process()
    config = ppxcls.load_config(file)
    assert runs() == 2
    assert config.Global.plugins == [str(plugin)]
    new_process()
    plugin.write_text(COUNTED + "# changed\n")
    with pytest.raises(ppxcls.ConfigError, match=r"code has changed, and has not run: .*part_a.py. If you"):
        ppxcls.load_config(file)
    assert runs() == 2


def test_what_the_user_names_himself_needs_no_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = yaml_with(tmp_path / "a", "[part_b.py]")
    (tmp_path / "a/part_b.py").write_text(COUNTED)
    (tmp_path / "part_c.py").write_text(COUNTED)
    monkeypatch.chdir(tmp_path)
    for source in (file, {"base": str(file)}, {"base": str(file), "Global": {"epochs": 3}}):
        with pytest.raises(ppxcls.ConfigError, match="add --trust"):
            ppxcls.load_config(source)
    with pytest.raises(ppxcls.ConfigError, match="add --trust"):  # only beside the YAML
        ppxcls.load_config(file, ["Global.plugins=[part_b.py]"])
    assert runs() == 0
    ppxcls.load_config(file, ["Global.plugins=[part_c.py]"])
    new_process()
    ppxcls.load_config({"base": str(file), "Global": {"plugins": ["part_c"]}})
    new_process()
    ppxcls.load_config(yaml_with(tmp_path / "c", f"[{tmp_path}/part_c.py]"))  # the word is remembered
    assert runs() == 3
    with pytest.raises(ppxcls.ConfigError, match=f"has not run: {tmp_path}/a/part_b.py"):
        ppxcls.load_config(yaml_with(tmp_path / "c", "[../a/part_b.py]"), ["Global.plugins.0=../a/part_b.py"])


def test_modules_of_the_folder_belong_to_the_plugin(tmp_path: Path) -> None:
    file = yaml_with(tmp_path / "a", "[part_d.py]")
    folder = tmp_path / "a"
    (folder / "part_d.py").write_text(
        "import part_e, json\nfrom part_pack.inner import value\n\n\ndef late():\n    from part_f import x\n    return x\n"
    )
    (folder / "part_e.py").write_text("import importlib\nimportlib.import_module('part_g')\n")
    (folder / "part_f.py").write_text("x = 7\n")
    (folder / "part_g.py").write_text(COUNTED)
    (folder / "part_h.py").write_text("nobody imports it\n")
    (folder / "json.py").write_text("raise SystemExit('an installed module comes first')\n")
    (folder / "part_pack").mkdir()
    (folder / "part_pack/__init__.py").write_text("")
    (folder / "part_pack/inner.py").write_text("from .other import value\n")
    (folder / "part_pack/other.py").write_text("value = 3\n")
    ppxcls.load_config(file, trust=True)
    assert runs() == 1
    assert sys.modules["part_d"].value == 3
    assert sys.modules["part_d"].late() == 7, "also after the import of the plugin"
    assert sys.modules["part_d"].__file__ == str(folder / "part_d.py")
    (folder / "part_h.py").write_text("changed\n")
    new_process()
    ppxcls.load_config(file)
    for name in ("part_e.py", "part_f.py", "part_g.py", "part_pack/other.py"):
        text = (folder / name).read_text()
        (folder / name).write_text(text + "\n")
        new_process()
        with pytest.raises(ppxcls.ConfigError, match=f"code has changed, and has not run: {folder}/{name}"):
            ppxcls.load_config(file)
        (folder / name).write_text(text)
    assert runs() == 2


def test_a_plugin_that_another_plugin_imports(tmp_path: Path) -> None:
    file = yaml_with(tmp_path / "a", "[part_o.py, part_p.py]")
    (tmp_path / "a/part_o.py").write_text("import part_p\n")
    (tmp_path / "a/part_p.py").write_text(COUNTED)
    config = ppxcls.load_config(file, trust=True)
    assert config.Global.plugins == [f"{tmp_path}/a/part_{letter}.py" for letter in "op"]
    assert runs() == 1


def test_what_was_checked_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = yaml_with(tmp_path / "a", "[part_i.py]")
    (tmp_path / "a/part_i.py").write_text("import part_j\n")
    (tmp_path / "a/part_j.py").write_text(COUNTED)
    record = plugins.record_trust

    def record_then_change(codes: Any) -> None:
        record(codes)
        for name in ("part_i", "part_j"):
            (tmp_path / f"a/{name}.py").write_text("raise SystemExit('changed after the check')\n")

    monkeypatch.setattr(plugins, "record_trust", record_then_change)
    ppxcls.load_config(file, trust=True)
    assert runs() == 1


def test_a_name_that_two_files_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = yaml_with(tmp_path / "a", "[part_k]")
    (tmp_path / "part_k.py").write_text("raise SystemExit('the current folder comes last')\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/part_k.py").write_text(COUNTED)
    with pytest.raises(ppxcls.ConfigError) as error:
        ppxcls.load_config(file, trust=True)
    assert str(error.value).endswith(
        f"the plugin 'part_k' is in two places with different content: {tmp_path}/a/part_k.py and "
        f"{tmp_path}/part_k.py; write the path of one of them"
    )
    (tmp_path / "part_k.py").write_text(COUNTED)
    assert ppxcls.load_config(file, trust=True).Global.plugins == [f"{tmp_path}/a/part_k.py"]
    (tmp_path / "a/calendar.py").write_text("")
    with pytest.raises(ppxcls.ConfigError, match="'calendar' is in two places"):
        ppxcls.load_config(yaml_with(tmp_path / "a", "[calendar]"), trust=True)


def test_an_installed_module_needs_the_word_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site/part_l/deep").mkdir(parents=True)
    for name in ("part_l/__init__", "part_l/deep/__init__", "part_l/deep/end"):
        (tmp_path / f"site/{name}.py").write_text(COUNTED)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    file = yaml_with(tmp_path / "a", "[part_l.deep.end]")
    with pytest.raises(ppxcls.ConfigError, match=r"has not run: .*part_l/__init__.py, .* and 1 more"):
        ppxcls.load_config(file)
    assert runs() == 0
    assert ppxcls.load_config(file, trust=True).Global.plugins == ["part_l.deep.end"]
    assert runs() == 3
    ppxcls.load_config(yaml_with(tmp_path / "b", "[part_l.deep.end, logging]"))  # they run no more


def test_a_package_beside_the_yaml(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    file = yaml_with(folder, "[part_q]")
    (folder / "part_q/deep").mkdir(parents=True)
    (folder / "part_q/__init__.py").write_text("from .deep.inner import value\nimport part_r\n")
    (folder / "part_q/deep/inner.py").write_text("value = 3\n")
    (folder / "part_q/late.py").write_text(COUNTED)
    (folder / "part_r.py").write_text("")
    with pytest.raises(ppxcls.ConfigError, match=f"has not run: {folder}/part_q/__init__.py"):
        ppxcls.load_config(file)
    assert ppxcls.load_config(file, trust=True).Global.plugins == [f"{folder}/part_q/__init__.py"]
    assert sys.modules["part_q"].value == 3
    new_process()
    ppxcls.load_config(yaml_with(folder, f"[{folder}/part_q/__init__.py]"))  # as the run's config names it
    assert sys.modules["part_q"].value == 3
    for name in ("part_q/late.py", "part_q/deep/inner.py", "part_r.py"):
        new_process()
        text = (folder / name).read_text()
        (folder / name).write_text(text + "# changed\n")
        with pytest.raises(ppxcls.ConfigError, match=f"code has changed, and has not run: {folder}/{name}"):
            ppxcls.load_config(file)
        (folder / name).write_text(text)
    new_process()
    ppxcls.load_config(file)
    __import__("part_q.late")
    assert runs() == 1


def test_a_folder_of_the_same_name_does_not_run_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace package would be no hit, but one with ``__init__.py`` is, and it comes first on the path."""
    (tmp_path / "site/part_s").mkdir(parents=True)
    (tmp_path / "site/part_s/__init__.py").write_text(COUNTED + "import part_t\n")
    (tmp_path / "site/part_t.py").write_text("")
    (tmp_path / "here/part_s").mkdir(parents=True)
    for name in ("part_s/__init__.py", "part_t.py"):
        (tmp_path / "here" / name).write_text("raise SystemExit('hostile')\n")
    file = yaml_with(tmp_path / "a", "[part_s]")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    ppxcls.load_config(file, trust=True)
    new_process()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(plugins, "_files", lambda *_: [])  # only the import is tried here
    path = list(sys.path)
    ppxcls.load_config(file)
    assert runs() == 2
    assert sys.path == path


@pytest.mark.parametrize("way", ["PYTHONPATH", ".pth", "Python itself", "a notebook"])
def test_the_current_folder_counts_if_somebody_names_it(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "part_u").mkdir(parents=True)
    for name in ("__init__", "net"):
        (project / f"part_u/{name}.py").write_text(COUNTED)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # its empty names are often an accident
    if way == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{project}")
    elif way == ".pth":
        (tmp_path / "site-packages").mkdir()
        (tmp_path / "site-packages/project.pth").write_text(f"import sys\n# a comment\n{project}\n")
        sys.path.append(str(tmp_path / "site-packages"))
    sys.path.insert(0, "" if way == "a notebook" else str(project))
    monkeypatch.chdir(project)
    is_installed = way in ("PYTHONPATH", ".pth")
    assert (installed_spec("part_u.net") is not None) == is_installed
    file = yaml_with(tmp_path / "a", "[part_u]")
    with pytest.raises(ppxcls.ConfigError, match=f"has not run: {project}/part_u/__init__.py"):
        ppxcls.load_config(file)
    assert runs() == 0
    name = "part_u" if is_installed else f"{project}/part_u/__init__.py"
    assert ppxcls.load_config(file, trust=True).Global.plugins == [name]
    assert runs() == 1


def test_a_home_that_can_t_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_warnings: Texts
) -> None:
    (tmp_path / "state").write_text("no folder")
    file = yaml_with(tmp_path / "a", "[part_m.py]")
    (tmp_path / "a/part_m.py").write_text(COUNTED)
    for _ in range(2):
        ppxcls.load_config(file, trust=True)
        ppxcls.load_config(file)  # this process knows it
    (text,) = new_warnings()
    assert text.startswith(
        f"that you trust these files can't be remembered in {tmp_path}/state/ppxcls/trusted: "
    )
    new_process()
    with pytest.raises(ppxcls.ConfigError, match="add --trust"):
        ppxcls.load_config(file)


def test_a_trained_run_is_evaluated_without_the_word(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Through the launcher: both processes get the word."""
    (tmp_path / "part_n.py").write_text(
        "import ppxcls\n\n\n@ppxcls.LR_SCHEDULES.register\ndef Third():\n    return lambda t: 0.001\n"
    )
    file = write_config(**{"Global.plugins": ["part_n.py"]})
    change = ["-o", "Optimizer.lr={name: Third}", "-o", "Global.eval_during_train=false"]
    launch = ["launch", "--restarts", "0", "--nproc_per_node", "2", "--log_dir", str(tmp_path / "log")]
    refused = run_tool(*launch, "train", "-c", file, *change)
    assert refused.returncode == 2
    assert "--trust" in refused.stdout + refused.stderr
    result = run_tool(*launch, "--trust", "train", "-c", file, *change)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "output/Xception41"
    assert run_tool("eval", "-c", folder, "-o", f"Global.pretrained_model={folder}/latest").returncode == 0
    (tmp_path / "part_n.py").write_text("")
    changed = run_tool("report", folder)
    assert changed.returncode == 2
    assert changed.stderr.startswith(f"config error: {folder}/config.yaml:")
    assert changed.stderr.count("\n") == 1
