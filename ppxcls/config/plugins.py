"""A user's own modules: imported, they register their components."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from ppxcls.config.checks import Where
from ppxcls.config.registry import registries

_FROM_FILES: dict[Path, str] = {}  # plugins that were imported from files: the names of their modules


def import_plugin(name: str, folder: Path | None, where: Where) -> str:
    """Import one plugin.

    Args:
        name: of a module, which is looked for where Python looks, then in the current folder, then in
            ``folder``; or a path that ends in ``.py``, relative to the current folder, or else to ``folder``.
        folder: of the YAML; None if there is no file.
        where: place of the plugin in the config, for error messages.

    Returns:
        How it is found again from anywhere: the name of a module that Python finds, or else the file's
            absolute path.

    Raises:
        ConfigError: it can't be found, or its import fails.
    """
    # The package's own components come first, so that it is the plugin's fault if two have one name.
    before = {kind: registry.registered() for kind, registry in registries().items()}
    is_file = name.endswith(".py")
    try:
        if not is_file and name not in _FROM_FILES.values() and _is_importable(name):
            importlib.import_module(name)
            return name
        relative = Path(name) if is_file else Path(*name.split(".")).with_suffix(".py")
        for base in [Path(), *([] if folder is None else [folder])]:
            if (base / relative).is_file():
                return _import_file((base / relative).resolve())
    except (Exception, SystemExit) as error:  # a user's module can fail in any way
        for kind, registry in registries().items():
            registry.forget(registry.registered() - before[kind])
        reason = " ".join(str(error).split())
        raise where.error(
            f"the plugin {name!r} can't be imported: {type(error).__name__}: {reason}"
        ) from error
    raise where.error(
        f"expected the name of a Python module or the path of a .py file, received {name!r}, which does not exist"
    )


def _is_importable(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package of a dotted name
        return False


def _import_file(file: Path) -> str:
    """Import a file under its own name, once. Files beside it can be imported by it."""
    if file in _FROM_FILES:
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
    _FROM_FILES[file] = file.stem
    return str(file)
