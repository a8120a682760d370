"""Facts about this machine that can change the bits of a training, such as versions and the processor."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from ppxcls.system.environment import thread_count

_PACKAGES = ("numpy", "opencv-python-headless", "opencv-python", "simplejpeg", "numba")
_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
# Variables that choose the code or the threads of a library.
_VARIABLE_NAMES = re.compile(r"(OMP|KMP|MKL|DNNL|ONEDNN|OPENBLAS|NUMBA|FLAGS|CUDNN|CUBLAS|NVIDIA_TF32)_\w+")
# Extensions of a processor that numeric libraries look for.
_INSTRUCTIONS = re.compile(r"(avx|sse4|fma|amx|bmi|f16c|asimd|sve|neon|bf16|i8mm)\w*")


def machine_facts() -> dict[str, str]:
    """Returns facts by name. Each is a short text; an unknown one is missing."""
    facts = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts |= {"system": f"{platform.system()} {platform.machine()}", **_processor_facts()}
    facts["threads"] = str(thread_count())
    facts["variables"] = _variables(os.environ)
    facts["code"] = code_digest()
    return facts


def _processor_facts() -> dict[str, str]:
    """Returns the name and the extensions of the processor, as Linux knows them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {"processor": platform.processor()} if platform.processor() else {}
    entries = dict(re.findall(r"^([\w ]+?)\s*: *(.*)$", text, re.MULTILINE))
    words = (entries.get("flags") or entries.get("Features") or "").split()
    facts = {
        "processor": entries.get("model name", ""),
        "instructions": " ".join(sorted(word for word in words if _INSTRUCTIONS.fullmatch(word))),
    }
    return {name: value for name, value in facts.items() if value}


def _variables(environment: Mapping[str, str]) -> str:
    names = sorted(name for name in environment if _VARIABLE_NAMES.fullmatch(name))
    return " ".join(f"{name}={environment[name]}" for name in names)


@functools.cache
def code_digest() -> str:
    """Returns a SHA-256 of this package's Python files."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE_FOLDER.rglob("*.py")):
        digest.update(str(file.relative_to(_PACKAGE_FOLDER).as_posix()).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
