"""A user's own modules: imported, they register their components."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from ppxcls.config.checks import Where
from ppxcls.config.registry import registries


def import_plugin(name: str, folder: Path | None, where: Where) -> str:
    """Import one plugin.

    Args:
        name: of a module, which is looked for where Python looks, then in the current folder, then in ``folder``; or a path that
            ends in ``.py``, relative to the current folder, or else to ``folder``.
        folder: of the YAML; None if there is no file.
        where: place of the plugin in the config, for error messages.

    Returns:
        How it is found again from anywhere: the name of a module that Python finds, or else the file's absolute path.

    Raises:
        ConfigError: it can't be found, or its import fails.
    """
    registries()  # the package's own components first, so that it is the plugin's fault if two have one name
    is_file = name.endswith(".py")
    try:
        if not is_file and _is_importable(name):
            importlib.import_module(name)
            return name
        relative = Path(name) if is_file else Path(*name.split(".")).with_suffix(".py")
        for base in [Path(), *([] if folder is None else [folder])]:
            if (base / relative).is_file():
                return _import_file((base / relative).resolve())
    except Exception as error:  # a user's module can fail in any way
        reason = " ".join(str(error).split())
        raise where.error(f"the plugin {name!r} can't be imported: {type(error).__name__}: {reason}") from error
    raise where.error(f"expected the name of a Python module or the path of a .py file, received {name!r}, which does not exist")


def _is_importable(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package of a dotted name
        return False


def _import_file(file: Path) -> str:
    """Import a file under its own name, once."""
    loaded = sys.modules.get(file.stem)
    if loaded is None:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[file.stem]
            raise
    elif Path(loaded.__file__ or "").resolve() != file:
        raise ImportError(f"another module named {file.stem!r} is loaded already")
    return str(file)
