"""Imports a user's own modules, which register their components."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ppxcls.config.checks import ConfigPlace
from ppxcls.config.registry import registries

_IMPORTED_NAMES: dict[str, None] = {}  # names of all plugin modules, in the order of their import
_MODULE_NAMES: dict[Path, str] = {}  # module names of the plugins that were imported from files


def import_plugin(name: str, folder: Path | None, where: ConfigPlace) -> str:
    """Imports one plugin.

    Args:
        name: name of a module, or a path that ends in ``.py``. A module is searched for on Python's path,
            then in the current folder, then in ``folder``. A path is relative to the current folder, or else
            to ``folder``.
        folder: folder of the YAML; None if there is no file.
        where: place of the plugin in the config, for error messages.

    Returns:
        A name that finds the plugin from any folder: the module name if it is on Python's path, or else the
            absolute path of the file.

    Raises:
        ConfigError: the plugin can't be found, or its import fails.
    """
    # The package's components are registered first. So if two have the same name, the plugin gets the error.
    previous_names = {kind: registry.registered() for kind, registry in registries().items()}
    is_file = name.endswith(".py")
    try:
        if not is_file and name not in _MODULE_NAMES.values() and _is_importable(name):
            importlib.import_module(name)
            _IMPORTED_NAMES.setdefault(name)
            return name
        relative_path = Path(name) if is_file else Path(*name.split(".")).with_suffix(".py")
        for search_folder in [Path(), *([] if folder is None else [folder])]:
            if (search_folder / relative_path).is_file():
                return _import_file((search_folder / relative_path).resolve())
    except (Exception, SystemExit) as error:  # a user's module can raise any error
        for kind, registry in registries().items():
            registry.forget(registry.registered() - previous_names[kind])
        reason = " ".join(str(error).split())
        raise where.error(
            f"the plugin {name!r} can't be imported: {type(error).__name__}: {reason}"
        ) from error
    raise where.error(
        "expected the name of a Python module or the path of "
        f"a .py file, received {name!r}, which does not exist"
    )


def plugin_files() -> dict[str, str]:
    """Returns the files of the plugins that were imported from files, by module name."""
    return {name: str(file) for file, name in _MODULE_NAMES.items()}


def plugins_without_paddle() -> list[str]:
    """Returns the names of the plugin modules that do not use Paddle, in the order of their import."""
    names = [name for name in _IMPORTED_NAMES if name in sys.modules]
    return [name for name in names if not any(map(_is_of_paddle, vars(sys.modules[name]).values()))]


def _is_of_paddle(value: object) -> bool:
    name = getattr(value, "__module__", None)
    if isinstance(value, ModuleType):
        name = value.__name__
    return isinstance(name, str) and name.partition(".")[0] == "paddle"


def _is_importable(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is missing
        return False


def _import_file(file: Path) -> str:
    """Imports a file under its own name, once. It can import other files in its folder."""
    if file in _MODULE_NAMES:
        return str(file)
    if file.stem in sys.modules:
        raise ImportError(f"another module named {file.stem!r} is loaded already")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    finally:
        sys.path.remove(str(file.parent))
    _MODULE_NAMES[file] = file.stem
    _IMPORTED_NAMES.setdefault(file.stem)
    return str(file)
