"""Finds the modules of plugins, and imports exactly the code that was checked.

A plugin of a file can import other files of its folder. These are found before the plugin is imported, and
are checked in the same way. Compiled files in ``__pycache__`` are not used, because they may contain another
program.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ppxcls.config.trust import Code, read_code
from ppxcls.system.atomic_files import read_regular

_MAX_PATH_FILE_BYTES = 1 << 20  # limit of a file that names folders of Python's path
_MAX_FILES = 2000  # limit of a package in a plugin's folder


@dataclass(frozen=True)
class PluginModule:
    """A module of a plugin.

    Attributes:
        name: full name of the module.
        code: its code; None for a folder without ``__init__.py``.
        folder: folder of its submodules; empty for a module that is no package.
    """

    name: str
    code: Code | None
    folder: str = ""


class _CheckedLoader(importlib.abc.ExecutionLoader):
    """Runs code that was read before."""

    def __init__(self, module: PluginModule, code: Code) -> None:
        self._module = module
        self._code = code

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002  Python's interface
        return bool(self._module.folder)

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002
        return self._code.path

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return importlib.util.decode_source(self._code.data)


class PluginFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of plugins by name, and no others.

    Args:
        modules: modules by name. More can be added.
    """

    def __init__(self, modules: Mapping[str, PluginModule] | None = None) -> None:
        self.modules = dict(modules or {})

    def find_spec(
        self,
        name: str,
        path: object = None,  # noqa: ARG002  Python's interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the spec of a plugin's module; None for the module of another package.

        Raises:
            ModuleNotFoundError: a plugin's package has no such module that was checked.
        """
        module = self.modules.get(name)
        if module is not None:
            return _spec(module)
        if name.partition(".")[0] in self.modules:  # Python would search the folder, without a check
            raise ModuleNotFoundError(f"No module named {name!r} among the checked files", name=name)
        return None


def _spec(module: PluginModule) -> importlib.machinery.ModuleSpec:
    if module.code is None:
        spec = importlib.machinery.ModuleSpec(module.name, None, is_package=True)
        spec.submodule_search_locations = [module.folder]
        return spec
    loader = _CheckedLoader(module, module.code)
    locations = [module.folder] if module.folder else None
    file_spec = importlib.util.spec_from_file_location(
        module.name, module.code.path, loader=loader, submodule_search_locations=locations
    )
    assert file_spec is not None
    return file_spec


def installed_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Returns the spec of an installed module without importing anything; None if there is none.

    The current folder does not count; see ``installed_folders``.

    Args:
        name: full name of the module. The packages around it are not imported either.
    """
    spec: importlib.machinery.ModuleSpec | None = None
    locations: list[str] | None = None
    words = name.split(".")
    for i in range(len(words)):
        spec = _first_spec(".".join(words[: i + 1]), locations)
        if spec is None:
            return None
        locations = list(spec.submodule_search_locations or [])
    return spec


def _first_spec(name: str, locations: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    """Returns the first spec of a module among Python's finders.

    Args:
        name: full name of the module.
        locations: folders of its package; None for a module of no package.
    """
    for finder in sys.meta_path:
        if isinstance(finder, PluginFinder) or not hasattr(finder, "find_spec"):
            continue
        places = locations
        if locations is None and finder is importlib.machinery.PathFinder:
            places = installed_folders()
        spec = finder.find_spec(name, places)
        if spec is not None:
            return spec
    return None


def installed_folders() -> list[str]:
    """Returns the folders of Python's path in which installed modules are.

    Python itself or a notebook may put the current folder there, which may be a stranger's. It counts only if
    ``PYTHONPATH`` or an installed package's ``.pth`` file names it.
    """
    current_folder = os.path.realpath(os.curdir)
    folders = [path for path in sys.path if path]
    if any(os.path.realpath(path) == current_folder for path in folders):
        named_folders = {os.path.realpath(path) for path in _named_folders()}
        if current_folder not in named_folders:
            return [path for path in folders if os.path.realpath(path) != current_folder]
    return folders


def _named_folders() -> Iterator[str]:
    """Yields the folders that ``PYTHONPATH`` and the ``.pth`` files of installed packages name."""
    yield from filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    for place in sys.path:
        if os.path.basename(place) not in ("site-packages", "dist-packages"):
            continue
        for file in Path(place).glob("*.pth"):
            with contextlib.suppress(OSError, ValueError):
                lines = (
                    read_regular(file, _MAX_PATH_FILE_BYTES).decode("utf-8", "surrogateescape").splitlines()
                )
                names = [line.strip() for line in lines if not line.startswith(("#", "import ", "import\t"))]
                yield from (os.path.join(place, name) for name in names if name)


@contextlib.contextmanager
def only_installed_modules() -> Iterator[None]:
    """Runs a block whose imports find no module in the current folder, unless it is an installed folder."""
    kept_folders = installed_folders()
    hidden_folders = [(i, path) for i, path in enumerate(sys.path) if path not in kept_folders]
    sys.path[:] = kept_folders
    try:
        yield
    finally:
        for i, path in hidden_folders:
            sys.path.insert(i, path)


def helper_modules(plugin: PluginModule, code: Code) -> dict[str, PluginModule]:
    """Returns the modules of a plugin's own folder that it imports anywhere, by name, without the plugin.

    If the plugin is a package, all its modules are among them.

    Args:
        plugin: the plugin.
        code: its code. It is trusted, because Python's parser is not made for hostile programs.

    Raises:
        OSError, ValueError: a file can't be read, or a package has too many files.
    """
    name = plugin.name
    folder = os.path.dirname(plugin.folder or code.path)
    modules: dict[str, PluginModule] = {}
    if plugin.folder:
        modules = {part.name: part for part in _package_modules(name, plugin.folder) if part.name != name}
    waiting_modules = [plugin, *modules.values()]
    while waiting_modules:
        module = waiting_modules.pop()
        for imported_name in _imported_names(module):
            top = imported_name.partition(".")[0]
            if top == name or (top not in modules and not _is_helper(top, folder)):
                continue
            for helper in _modules_on_the_way(imported_name, folder, modules):
                modules[helper.name] = helper
                waiting_modules.append(helper)
    return modules


def _is_helper(name: str, folder: str) -> bool:
    """True if a module is in a plugin's folder, and no installed module has its name."""
    place = os.path.join(folder, name)
    return (os.path.isfile(f"{place}.py") or os.path.isdir(place)) and installed_spec(name) is None


def _modules_on_the_way(
    name: str, folder: str, modules: Mapping[str, PluginModule]
) -> Iterator[PluginModule]:
    """Yields the modules that an import of a name imports, without those that are there already."""
    words = name.split(".")
    for i, word in enumerate(words):
        full_name = ".".join(words[: i + 1])
        place = os.path.join(folder, word)
        init_file = os.path.join(place, "__init__.py")
        if os.path.isfile(init_file):
            if full_name not in modules:
                yield from _package_modules(full_name, place)
            return
        if os.path.isfile(f"{place}.py"):
            if full_name not in modules:
                yield PluginModule(full_name, read_code(Path(f"{place}.py")))
            return
        if not os.path.isdir(place):
            return
        if full_name not in modules:
            yield PluginModule(full_name, None, place)
        folder = place


def _package_modules(name: str, folder: str) -> Iterator[PluginModule]:
    """Yields a package and all modules below it."""
    folders = [(name, folder)]
    count = 0
    while folders:
        package, place = folders.pop()
        init_file = os.path.join(place, "__init__.py")
        code = read_code(Path(init_file)) if os.path.isfile(init_file) else None
        yield PluginModule(package, code, place)
        with os.scandir(place) as entries:
            for entry in entries:
                count += 1
                if count > _MAX_FILES:
                    raise ValueError(f"the package {name!r} has more than {_MAX_FILES:,} files")
                stem, extension = os.path.splitext(entry.name)
                if entry.is_dir(follow_symlinks=False) and entry.name.isidentifier():
                    folders.append((f"{package}.{entry.name}", entry.path))
                elif extension == ".py" and stem != "__init__" and stem.isidentifier() and entry.is_file():
                    yield PluginModule(f"{package}.{stem}", read_code(Path(entry.path)))


def _imported_names(module: PluginModule) -> Iterator[str]:
    """Yields the full names that a module's import statements contain. Some are no modules."""
    if module.code is None:
        return
    try:
        tree = ast.parse(module.code.data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the import itself reports it
        return
    package = module.name if module.folder else module.name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            words = package.split(".")[: -(node.level - 1) or None] if node.level else []
            parent = ".".join([*words, *([node.module] if node.module else [])])
            yield from (f"{parent}.{alias.name}" if parent else alias.name for alias in node.names)
            yield parent
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):  # import_module("name")
            values = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            yield from (value for value in values if isinstance(value, str))
