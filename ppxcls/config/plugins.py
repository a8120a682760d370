"""Finds and imports a user's own modules, which register their components."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ppxcls.config.checks import ConfigError, ConfigPlace, shorten_value
from ppxcls.config.plugin_modules import (
    PluginFinder,
    PluginModule,
    helper_modules,
    installed_spec,
    only_installed_modules,
)
from ppxcls.config.registry import registries
from ppxcls.config.trust import Code, read_code, record_trust
from ppxcls.system.atomic_files import reason_of
from ppxcls.system.paths import printable

_IMPORTED_NAMES: dict[str, None] = {}  # names of all plugin modules, in the order of their import
_MODULE_NAMES: dict[Path, str] = {}  # module names of the plugins that were imported from files
_FINDER = PluginFinder()  # the modules of all plugins that were imported from files
_MAX_LISTED_NAMES = 2
_PACKAGE_FILE = "__init__.py"


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found, and not imported yet.

    Attributes:
        name: name in the config.
        where: place of the name in the config.
        module: name of its module.
        codes: files whose code runs first when the module is imported; empty if it was imported before.
        is_word: True if the user names this file, not only a file that the user has.
        file: file of the module; None for an installed module.
        helpers: modules of the file's folder that it imports, by name.
    """

    name: str
    where: ConfigPlace
    module: str
    codes: Sequence[Code]
    is_word: bool
    file: Path | None = None
    helpers: dict[str, PluginModule] = field(default_factory=dict)

    @property
    def lasting_name(self) -> str:
        """Name that finds the plugin from any folder: the module's, or else the path of the file."""
        return self.module if self.file is None else str(self.file)

    @property
    def untrusted_codes(self) -> list[Code]:
        """Code that would run, and that the user has not agreed to."""
        codes = [*self.codes, *(helper.code for helper in self.helpers.values() if helper.code)]
        return [code for code in codes if not code.is_trusted]

    @property
    def _own_module(self) -> PluginModule:
        path = Path(self.codes[-1].path)
        return PluginModule(
            self.module, self.codes[-1], str(path.parent) if path.name == _PACKAGE_FILE else ""
        )

    def add_helpers(self) -> None:
        """Finds the modules of the file's folder that it imports. Its own code must be trusted.

        Raises:
            ConfigError: a module can't be read.
        """
        if self.file is None or not self.codes:
            return
        try:
            self.helpers.update(helper_modules(self._own_module, self.codes[-1]))
        except (OSError, ValueError) as error:
            raise self._error(error, reason_of(error)) from None

    def import_module(self) -> None:
        """Imports the module, once.

        Raises:
            ConfigError: the import fails.
        """
        # The package's components are registered first, so the plugin gets the error if two have one name.
        previous_names = {kind: registry.registered() for kind, registry in registries().items()}
        try:
            with only_installed_modules():
                if self.file is None:
                    importlib.import_module(self.module)
                elif self.file not in _MODULE_NAMES:
                    self._import_file()
                    _MODULE_NAMES[self.file] = self.module
            _IMPORTED_NAMES.setdefault(self.module)
        except (Exception, SystemExit) as error:  # a user's module can raise any error
            for kind, registry in registries().items():
                registry.forget(registry.registered() - previous_names[kind])
            raise self._error(error, str(error)) from error

    def _import_file(self) -> None:
        """Imports the checked code under the file's name, even if an installed module has this name."""
        loaded_module = sys.modules.get(self.module)
        if loaded_module is not None:
            if getattr(loaded_module, "__file__", None) == str(self.file):  # another plugin has imported it
                return
            raise ImportError(f"another module named {self.module!r} is loaded already")
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
        previous_modules = dict(_FINDER.modules)
        _FINDER.modules = {**self.helpers, **_FINDER.modules, self.module: self._own_module}
        try:
            importlib.import_module(self.module)
        except BaseException:
            sys.modules.pop(self.module, None)
            for name in _FINDER.modules.keys() - previous_modules.keys():
                sys.modules.pop(name, None)  # a corrected file is imported again
            _FINDER.modules = previous_modules
            raise

    def _error(self, error: BaseException, message: str) -> ConfigError:
        reason = " ".join(message.split())
        return self.where.error(
            f"the plugin {shorten_value(self.name)} can't be imported: {type(error).__name__}: {reason}"
        )


def find_plugin(name: str, folders: Sequence[Path], where: ConfigPlace, *, is_word: bool) -> Plugin:
    """Finds a plugin, and imports nothing.

    Args:
        name: name of a module or package, or a path that ends in ``.py``. An installed one comes first, and
            then a file in one of the folders. They must not be different.
        folders: folders to search, in order.
        where: place of the name in the config, for error messages.
        is_word: True if the user wrote the name on the command line or in a program. This is his word for an
            installed module, or for the file that the name leads to from the current folder.

    Raises:
        ConfigError: the plugin does not exist or can't be read, or there are two different ones.
    """
    is_file = name.endswith(".py")
    is_module = not is_file and all(word.isidentifier() for word in name.split("."))
    loaded_module = sys.modules.get(name) if is_module and name not in _MODULE_NAMES.values() else None
    try:
        files = list(_files(name, folders)) if is_file or is_module else []
        codes = _installed_codes(name) if is_module and loaded_module is None else None
    except (OSError, ValueError, RecursionError) as error:
        raise where.error(f"the plugin {shorten_value(name)} can't be read: {reason_of(error)}") from None
    if loaded_module is not None:  # its code has run already
        _refuse_different_files(name, where, [_code_of(loaded_module), *files])
        return Plugin(name, where, module=name, codes=[], is_word=True)
    is_same_file = codes is not None and [code.path for code in files[:1]] == [codes[-1].path]
    is_plain_file = is_same_file and "." not in name and Path(files[0].path).name != _PACKAGE_FILE
    if codes is not None and not is_plain_file:
        _refuse_different_files(name, where, [codes[-1], *files])
        return Plugin(name, where, module=name, codes=codes, is_word=is_word)
    if not files:
        raise where.error(
            "expected the name of a Python module or the path of "
            f"a .py file, received {shorten_value(name)}, which does not exist"
        )
    file = Path(files[0].path)
    has_word = is_word and file in [path.resolve() for path in _relative_paths(name)]
    if not has_word:
        _refuse_different_files(name, where, files)
    codes = [] if file in _MODULE_NAMES else files[:1]
    module = file.parent.name if file.name == _PACKAGE_FILE else file.stem
    return Plugin(name, where, module=module, codes=codes, is_word=has_word, file=file)


def import_plugins(plugins: Sequence[Plugin], raw: Mapping[str, Any], *, is_trusted: bool) -> None:
    """Imports plugins, after all of them were found to be trusted.

    Args:
        plugins: plugins in the order of their import.
        raw: content of the config, which names components of the plugins.
        is_trusted: True if the user agrees to run all of them, which is remembered.

    Raises:
        ConfigError: the user has not agreed to run a plugin, or its import fails. If one is not trusted, none
            is imported.
    """
    for plugin in plugins:
        if is_trusted or plugin.is_word or not plugin.untrusted_codes:
            plugin.add_helpers()
    if not is_trusted:
        refused_plugins = [plugin for plugin in plugins if not plugin.is_word and plugin.untrusted_codes]
        if refused_plugins:
            raise _untrusted_error(refused_plugins, raw)
    record_trust([code for plugin in plugins for code in plugin.untrusted_codes])
    for plugin in plugins:
        plugin.import_module()


def plugin_modules() -> dict[str, PluginModule]:
    """Returns the modules of the plugins that were imported from files, by name, with their code."""
    return dict(_FINDER.modules)


def plugin_codes() -> list[Code]:
    """Returns the code of the plugins that were imported from files."""
    return [module.code for module in plugin_modules().values() if module.code and module.code.data]


def changed_plugin(codes: Sequence[Code]) -> str | None:
    """Returns the path of the first file whose code is not the given one; None if all files have their code.

    Args:
        codes: result of ``plugin_codes`` in another process.
    """
    for code in codes:
        try:
            if read_code(Path(code.path)) != code:
                return code.path
        except (OSError, ValueError):
            return code.path
    return None


def plugins_without_paddle() -> list[str]:
    """Returns the names of the plugin modules that do not use Paddle, in the order of their import."""
    names = [name for name in _IMPORTED_NAMES if name in sys.modules]
    return [name for name in names if not any(map(_is_of_paddle, vars(sys.modules[name]).values()))]


def _is_of_paddle(value: object) -> bool:
    name = getattr(value, "__module__", None)
    if isinstance(value, ModuleType):
        name = value.__name__
    return isinstance(name, str) and name.partition(".")[0] == "paddle"


def _relative_paths(name: str) -> list[Path]:
    """Returns the paths that a plugin can have in a folder. As in Python, a package comes first."""
    if name.endswith(".py"):
        return [Path(name)]
    path = Path(*name.split("."))
    return [path / _PACKAGE_FILE, path.with_suffix(".py")]


def _files(name: str, folders: Sequence[Path]) -> Iterator[Code]:
    """Yields the files of a plugin in some folders, each once."""
    paths: dict[Path, None] = {}
    for folder in folders:
        for path in _relative_paths(name):
            if (folder / path).is_file():
                paths.setdefault((folder / path).resolve())
    yield from map(read_code, paths)


def _installed_codes(name: str) -> list[Code] | None:
    """Returns the code that an import of an installed module runs first; None if there is no such module.

    It is the code of the packages around the module, and its own.
    """
    words = name.split(".")
    codes: list[Code] = []
    for i in range(len(words)):
        full_name = ".".join(words[: i + 1])
        spec = installed_spec(full_name)
        if spec is None:
            return None
        is_source = (
            spec.has_location and str(spec.origin).endswith(".py") and Path(str(spec.origin)).is_file()
        )
        codes.append(read_code(Path(str(spec.origin))) if is_source else Code(spec.origin or full_name, b""))
    return codes


def _code_of(module: ModuleType) -> Code:
    """Returns the code of a module that was imported, or an empty one with its name."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str) and file.endswith(".py"):
        with contextlib.suppress(OSError, ValueError):
            return read_code(Path(file))
    return Code(file or module.__name__, b"")


def _refuse_different_files(name: str, where: ConfigPlace, codes: Sequence[Code]) -> None:
    other_codes = [code for code in codes[1:] if code.path != codes[0].path and code.data != codes[0].data]
    if other_codes:
        raise where.error(
            f"the plugin {shorten_value(name)} is in two places with different content: "
            f"{printable(codes[0].path)} and {printable(other_codes[0].path)}; write the path of one of them"
        )


def _untrusted_error(plugins: Sequence[Plugin], raw: Mapping[str, Any]) -> ConfigError:
    """Returns the error for plugins that the user has not agreed to run, and that were not imported."""
    codes = [code for plugin in plugins for code in plugin.untrusted_codes]
    paths = [printable(code.path) for code in codes]
    more = f" and {len(paths) - _MAX_LISTED_NAMES} more" if len(paths) > _MAX_LISTED_NAMES else ""
    text = f"code that came with the config has not run: {', '.join(paths[:_MAX_LISTED_NAMES])}{more}"
    if any(code.has_changed for code in codes):
        text = f"code has changed, and has not run: {', '.join(paths[:_MAX_LISTED_NAMES])}{more}"
    names = {name for code in codes for name in _registered_names(code)}
    uses = _uses(raw, names, ())
    if uses:
        more = f" and {len(uses) - 1} more" if len(uses) > 1 else ""
        text += f"; {uses[0]}{more} would come from it"
    return plugins[0].where.error(
        f"{text}. If you know this code, add --trust, which is remembered (in Python: trust=True)"
    )


def _registered_names(code: Code) -> Iterator[str]:
    """Yields the names of the functions and classes that a program registers, as far as its text shows it.

    Python's parser is not used, because a hostile program can end it.
    """
    is_registered = False
    for line in code.data.decode("utf-8", "replace").splitlines():
        words = re.findall(r"\w+", line[:200])
        if line.lstrip().startswith("@"):
            is_registered = is_registered or "register" in words
        elif words[:1] in (["class"], ["def"]):
            if is_registered and len(words) > 1:
                yield words[1]
            is_registered = False


def _uses(value: Any, names: Set[str], keys: tuple[str, ...]) -> list[str]:
    """Returns the places in a config that name a component, as ``Arch.name 'MyNet'``."""
    uses: list[str] = []
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in entries:
        if isinstance(item, str) and item in names:
            uses.append(f"{'.'.join((*keys, str(key)))} {item!r}")
        elif key in names:
            uses.append(f"{'.'.join(keys)} {key!r}")
        elif isinstance(item, Mapping | list):
            uses += _uses(item, names, (*keys, str(key)))
    return uses
