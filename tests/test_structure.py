"""The structure of the package: imports go down only, and few modules read a config."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import unittest.mock
import warnings
from pathlib import Path

import docstring_parser
import pytest

import ppxcls
from tests.conftest import ROOT, load_script

# The subpackages by level. A module imports from its own subpackage and from lower levels.
ROWS = [
    ["__main__"],
    ["cli"],
    ["__init__"],
    ["fitting", "serving"],
    ["tuning"],
    ["deploy", "reports"],
    ["build"],
    ["train"],
    ["published"],
    ["models", "packed"],
    ["data", "checkpoints"],
    ["config", "ops", "calibration"],
    ["system", "_version"],
]
# Modules that may import or read a Config. All other modules get checked blocks and plain values.
CONFIG_READERS = {
    "config",
    "build",
    "deploy/build.py",
    "deploy/build_export.py",
    "deploy/build_portable.py",
    "tuning/build.py",
    "tuning/study.py",
    "tuning/study_checks.py",
    "fitting",
    "reports",
    "__init__.py",
}
# Config sections with names that no other object has as an attribute.
SECTIONS = {"Global", "AMP", "EMA", "Arch", "DataLoader", "Infer", "run_folder", "own_folder"}
CONFIG_MODULES = {"ppxcls.config.sections", "ppxcls.config.load"}
# Modules that import others by name at run time: the public face, and the declarations of result files.
IMPORT_BY_NAME = {"__init__.py", "train/results.py"}
# Constants that several packages declare for the whole, see ``train/results.py``.
PER_PACKAGE = {"RESULTS", "RESULTS_OF_BEST"}
# A public function with a wider meaning than the one of the same name below it: words beside files.
WIDER_FUNCTIONS = {"load_weights"}
NO_NOUNS = frozenset(
    [
        "found",
        "made",
        "own",
        "given",
        "kept",
        "wanted",
        "shown",
        "others",
        "other",
        "another",
        "used",
        "taken",
        "known",
        "seen",
        "written",
        "listed",
        "named",
        "chosen",
        "tried",
        "coming",
        "stored",
        "placed",
        "done",
        "gone",
        "told",
        "meant",
        "said",
        "held",
        "loaded",
        "saved",
        "parsed",
        "damaged",
        "merged",
        "removed",
        "moved",
        "changed",
        "decoded",
        "predicted",
        "scored",
        "reached",
        "turned",
        "together",
        "inside",
        "outside",
        "behind",
        "beside",
        "before",
        "after",
        "afterwards",
        "aside",
        "then",
        "there",
        "here",
        "now",
        "once",
        "again",
        "both",
        "several",
        "many",
        "few",
        "most",
        "least",
        "enough",
        "waiting",
        "waited",
        "running",
        "rising",
        "leaving",
        "in_hand",
        "published",
        "provided",
        "segmented",
        "rewritten",
        "synchronized",
        "frozen",
        "trained",
        "needed",
        "excluded",
        "refused",
        "replaced",
        "prepared",
        "deployed",
        "numbered",
        "compiled",
        "traced",
        "evaluated",
        "pasted",
        "measured",
        "live",
        "remaining",
        "declared",
        "pinned",
        "unfinished",
        "nothing",
        "unknown",
    ]
)
NO_BEGINNINGS = frozenset(
    "of to for in as that by from with on at which whether if because where when is are whose".split()  # noqa: SIM905
)
RANK = {name: row for row, names in enumerate(ROWS) for name in names}
FILES = sorted((ROOT / "ppxcls").rglob("*.py"))
# Beside the package itself: code that users read and copy.
ALL_FILES = FILES + sorted(f for place in ("scripts", "tools", "docs") for f in (ROOT / place).rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def unit(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(file: Path) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: relative import"
            if node.module == "ppxcls":
                modules += [home_of(alias.name) for alias in node.names]
            elif node.module and node.module.startswith("ppxcls."):
                modules.append(node.module)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            modules += ["ppxcls.__init__" if name == "ppxcls" else name for name in names if is_ours(name)]
        elif (
            isinstance(node, ast.Call)
            and "import_module(" in (call := ast.unparse(node))
            and "ppxcls" in call
        ):
            assert str(file.relative_to(ROOT / "ppxcls")) in IMPORT_BY_NAME, f"{file.name}: {call}"
    return modules


def home_of(name: str) -> str:
    """Module of ``from ppxcls import name``: a subpackage, or the home of a public name."""
    return f"ppxcls.{name}" if name in RANK else ppxcls._MODULE_BY_NAME.get(name, "ppxcls.__init__")


def is_ours(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] == "ppxcls"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    own = file.relative_to(ROOT / "ppxcls").parts[0].removesuffix(".py")
    assert own in RANK, f"{own} has no row"
    for module in imported(file):
        other = unit(module)
        assert other == own or RANK[other] > RANK[own], f"{file.name} imports {module}"


def test_no_module_has_the_name_of_a_standard_one() -> None:
    """An editor's "run this file" puts the package's folder first on the path.

    A module with the name of a standard one would then be imported instead.
    """
    assert not {file.stem for file in FILES} & set(sys.stdlib_module_names)
    command = [sys.executable, str(ROOT / "ppxcls/cli/__init__.py")]
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr


def test_no_name_has_two_homes() -> None:
    """Classes, functions, constants and aliases. The layers of a network are its family's own."""
    homes: dict[str, set[str]] = {}
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if file.parent.name == "models" and isinstance(node, ast.ClassDef) and node.bases:
                continue
            for name in top_level_names(node):
                if not name.startswith("_") and name not in PER_PACKAGE | WIDER_FUNCTIONS and len(name) > 1:
                    homes.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    assert len(homes) > 300
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def top_level_names(node: ast.stmt) -> list[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def variables(tree: ast.AST) -> set[str]:
    """Names of a module's variables, parameters and attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


@pytest.mark.parametrize("file", ALL_FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_variables_are_nouns(file: Path) -> None:
    """No participle, adverb or adjective alone: ``missing_keys`` and not ``found``."""
    assert {
        name for name in variables(ast.parse(file.read_text())) if name.strip("_").lower() in NO_NOUNS
    } == set()


def test_variables_that_are_no_nouns_are_seen() -> None:
    tree = ast.parse("def f(given):\n    found, self.kept = 1, 2\n    for _other in given: pass\n")
    assert {name for name in variables(tree) if name.strip("_") in NO_NOUNS} == {
        "given",
        "found",
        "kept",
        "_other",
    }


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def takes_positions(file: Path, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True if numba, Paddle's PyLayer or the interpreter of pickles calls a function, always by position."""
    first = function.args.args[0].arg if function.args.args else ""
    return file.name.endswith("_kernels.py") or first in ("ctx", "spend")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_many_arguments_are_passed_by_name(file: Path) -> None:
    """A function with more than four parameters takes two by position."""
    for function in functions(file):
        if takes_positions(file, function):
            continue
        names = [arg.arg for arg in function.args.args if arg.arg not in ("self", "cls")]
        assert len(names) <= 2 or len(names) + len(function.args.kwonlyargs) <= 4, function.name


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_statement_has_one_conditional_and_no_three_values(file: Path) -> None:
    if file.name.endswith("_kernels.py"):
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Raise | ast.Expr):
            conditionals = sum(isinstance(part, ast.IfExp) for part in ast.walk(node))
            assert conditionals <= 1, f"{file.name}:{node.lineno}"
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else []
            is_constants = all(isinstance(target, ast.Name) and target.id.isupper() for target in targets)
            assert len(targets) < 3 or is_constants, f"{file.name}:{node.lineno}"


def descriptions(file: Path) -> list[tuple[str, str]]:
    """Name and description of each argument and attribute in the docstrings of a module."""
    pairs = []
    nodes = ast.walk(ast.parse(file.read_text()))
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            parsed = docstring_parser.parse(
                ast.get_docstring(node) or "", docstring_parser.DocstringStyle.GOOGLE
            )
            pairs += [(parameter.arg_name, parameter.description or "") for parameter in parsed.params]
    return pairs


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_descriptions_of_arguments_begin_with_a_noun(file: Path) -> None:
    for name, description in descriptions(file):
        assert description, f"{name} has no description"
        assert description.split()[0].strip(",.;:").lower() not in NO_BEGINNINGS, f"{name}: {description}"


def test_descriptions_are_seen() -> None:
    pairs = dict(descriptions(ROOT / "ppxcls/data/loader.py"))
    assert pairs["num_workers"].startswith("number of threads")


def test_some_imports_are_seen() -> None:
    assert "ppxcls.config.registry" in imported(ROOT / "ppxcls/train/losses.py")
    assert "ppxcls.system.logs" in imported(ROOT / "ppxcls/train/trackers.py")


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from ppxcls import build_trainer", "ppxcls.build.trainer"),
        ("from ppxcls import system", "ppxcls.system"),
        ("import ppxcls", "ppxcls.__init__"),
        ("import ppxcls.build.data", "ppxcls.build.data"),
        ("from ppxcls.build import data", "ppxcls.build"),
    ],
)
def test_every_form_of_an_import_is_seen(line: str, module: str, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    assert imported(file) == [module]


@pytest.mark.parametrize("line", ["from ..build import data", "importlib.import_module('ppxcls.build')"])
def test_hidden_imports_are_refused(line: str) -> None:
    file = ROOT / "ppxcls/data/pretended.py"
    with pytest.raises(AssertionError), unittest.mock.patch.object(Path, "read_text", return_value=line):
        imported(file)


def uses_of_a_config(file: Path) -> set[str]:
    """Returns the names by which a module imports ``Config`` or a section, or reads a section."""
    uses = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in CONFIG_MODULES:
            uses |= {alias.name for alias in node.names} - {"RUN_CONFIG", "RUN_CONFIG_HEADER", "to_plain"}
        elif isinstance(node, ast.ImportFrom) and node.module in ("ppxcls.config", "ppxcls"):
            uses |= {alias.name for alias in node.names} & {"sections", "load", "Config"}
        elif isinstance(node, ast.Import):
            uses |= {alias.name for alias in node.names} & CONFIG_MODULES
        elif isinstance(node, ast.Attribute):
            is_of_config = isinstance(node.value, ast.Name) and node.value.id in ("config", "_config")
            if node.attr in SECTIONS or (is_of_config and node.attr[0].isupper()):
                uses.add(node.attr)
    return uses


@pytest.mark.parametrize(
    "line",
    [
        "from ppxcls.config.sections import Config",
        "from ppxcls.config import sections",
        "from ppxcls import Config",
        "import ppxcls.config.load",
        "terms = config.Loss.Train",
        "epochs = settings.Global.epochs",
    ],
)
def test_every_use_of_a_config_is_seen(line: str, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    assert uses_of_a_config(file)


def test_few_modules_read_a_config() -> None:
    readers = {
        str(file.relative_to(ROOT / "ppxcls")): uses for file in FILES if (uses := uses_of_a_config(file))
    }
    assert {"build/trainer.py", "deploy/build.py", "tuning/build.py", "reports/record.py"} <= readers.keys()
    others = {file: uses for file, uses in readers.items() if not {file, file.split("/")[0]} & CONFIG_READERS}
    assert others == {}


LINES = 60  # lines of a function before a warning


@pytest.mark.parametrize(
    "file", FILES + sorted((ROOT / "tools").glob("*.py")), ids=lambda f: str(f.relative_to(ROOT))
)
def test_nothing_is_evaluated(file: Path) -> None:
    """No ``eval`` and no ``exec``.

    A long function only gives a warning, because a hard limit would lead to denser code instead of a better
    split.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("eval", "exec"))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > LINES:
                warnings.warn(f"{file.name}: {node.name} has {length} lines", stacklevel=1)


BLOCKER = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("paddle", "cv2"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def imported_without_paddle(modules: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKER, *modules]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)


def test_checkpoints_and_configs_need_no_paddle() -> None:
    files = [file for file in FILES if file.parent.name in ("checkpoints", "config")]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    assert len(modules) > 10
    result = imported_without_paddle([*modules, "ppxcls.system.environment", "ppxcls.system.kernels"])
    assert result.returncode == 0, result.stderr


def test_an_import_of_paddle_is_seen() -> None:
    assert "paddle is blocked" in imported_without_paddle(["ppxcls.system.distributed"]).stderr


def test_the_version_stands_once() -> None:
    assert importlib.metadata.version("ppxcls") == ppxcls.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert f"## {ppxcls.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_reference_of_the_keys_is_current() -> None:
    """``python scripts/write_reference.py`` writes the page."""
    module = load_script("write_reference")
    page = module.reference()
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == page
    for key in ("`hang_timeout`", "### Xception41", "### RandomErasing", "### ReduceOnPlateau", "`plugins`"):
        assert key in page


@pytest.mark.parametrize("file", PAGES, ids=lambda f: f.name)
def test_links_of_the_documentation_lead_somewhere(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets or file.name not in ("README.md", "CONTRIBUTING.md")
    for target in targets:
        assert (file.parent / target).exists(), target
    for path in re.findall(r"`((?:ppxcls|scripts|tests|tools|configs)/[\w./]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def test_the_main_line_can_be_read_in_one_sitting() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    order = text[text.index("The code reads best in this order") :].split("\n\n")[0]
    files = re.findall(r"`([\w./]+\.\w+)`", order)
    assert "ppxcls/train/learner.py" in files
    assert "ppxcls/build/trainer.py" in files
    total = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert total <= 1200


# Modules that open a file for writing by themselves, or call what does, and why no link can redirect it.
WRITERS = {
    "system/atomic_files.py": "it is the way to write; a device that the user named is opened as it is",
    "system/open_folder.py": "it opens names in the descriptor of a folder",
    "system/temporary_files.py": "it opens names that nobody can guess",
    "system/file_lock.py": "a folder, to lock it",
    "system/logs.py": "the null device, if a log can't be opened",
    "system/kernel_cache.py": "it opens a file to read it, and not through a link",
    "system/private_files.py": "files in the user's own private folder, by its descriptor",
    "system/shared_memory.py": "memory without a name in a folder",
    "system/supervisor.py": "a file in a temporary folder of this process",
    "checkpoints/files.py": "a second name for a part that was just written; the old name is removed before",
    "checkpoints/run_folder.py": "a copy into a folder that was just created",
    "published/transfer.py": "a part in this user's own private folder, by its descriptor",
    "packed/write.py": "an array into a stream of a whole file",
    "fitting/features.py": "arrays into a stream of a whole file",
    "data/decode.py": "a picture in a temporary folder of this process",
    "serving/decoder_worker.py": "the null device, and a file of the kernel under /proc",
    "deploy/int8.py": "a file in a temporary folder of this process",
    "deploy/program_files.py": "files in a private folder of this process, and memory",
    "deploy/whole_export.py": "it opens a part that was just written, to bring it to the disk",
    "deploy/saved_program.py": "files in a temporary folder of this process",
    "train/paddle_inference.py": "a program in a temporary folder of this process",
    "train/visualdl_tracker.py": "another package writes; its folder was checked to be no link",
    "reports/curves.py": "a picture into memory",
    "tuning/batch_size.py": "a file of the kernel under /proc",
}
# Methods of any object, functions of three modules, and a class. ``run.save`` and others of ours are not meant.
WRITE_METHODS = {
    *("write_text", "write_bytes", "touch", "savez", "savez_compressed", "imwrite", "savefig", "to_csv"),
    *("symlink_to", "hardlink_to", "tofile", "memmap"),
}
WRITE_CALLS = re.compile(
    r"os\.(open|link|symlink|mkfifo)|shutil\.(copy\w*|move)|(np|paddle|paddle\.jit|onnx)\.save\w*|LogWriter"
)
DESCRIPTORS = re.compile(r"(append|change)_descriptor\(")


def bare_writes(tree: ast.AST) -> list[str]:
    """Calls that create or change a file by its name, other than the functions of ``system``."""
    calls = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        if function == "open" and node.args and not DESCRIPTORS.match(ast.unparse(node.args[0])):
            modes = [*node.args[1:2], *(key.value for key in node.keywords if key.arg == "mode")]
            if modes and set(ast.unparse(modes[0])) & set("wax+"):
                calls.append(ast.unparse(node))
        elif WRITE_CALLS.fullmatch(function) or (
            isinstance(node.func, ast.Attribute) and node.func.attr in WRITE_METHODS
        ):
            calls.append(ast.unparse(node))
    return calls


def test_files_are_written_by_the_functions_that_follow_no_links() -> None:
    """``whole_file``, ``new_file`` and ``append_descriptor``, or a module of the table with its reason."""
    files = [*FILES, *sorted((ROOT / "tools").glob("*.py"))]
    writes = {
        str(file.relative_to(ROOT)).removeprefix("ppxcls/"): calls
        for file in files
        if (calls := bare_writes(ast.parse(file.read_text())))
    }
    assert {name: calls for name, calls in writes.items() if name not in WRITERS} == {}
    assert WRITERS.keys() - writes.keys() == set(), "no longer needed"


@pytest.mark.parametrize(
    "line",
    [
        "open(file, 'w')",
        "open(file, mode='ab')",
        "(folder / 'a').write_text('b')",
        "np.savez(file, a=b)",
        "cv2.imwrite(str(file), image)",
        "shutil.copyfile(a, b)",
        "os.open(file, os.O_WRONLY)",
        "LogWriter(logdir=folder)",
        "paddle.save(state, file)",
    ],
)
def test_a_bare_write_is_seen(line: str) -> None:
    assert bare_writes(ast.parse(line)) == [ast.unparse(ast.parse(line))]


@pytest.mark.parametrize(
    "line",
    ["open(file)", "open(file, 'rb')", "open(append_descriptor(file), 'ab')", "write_text(file, text)"],
)
def test_other_calls_are_no_bare_writes(line: str) -> None:
    assert bare_writes(ast.parse(line)) == []
