"""Writes the imports of ``ppxcls/__init__.py`` that tell type checkers and editors what the public names are.

    python scripts/write_public_face.py

At run time the names are imported at their first use; a type checker can't follow that.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ppxcls

FILE = ROOT / "ppxcls/__init__.py"
BLOCK = re.compile(r"if TYPE_CHECKING:\n(?: {4}.*\n)+")


def module_text() -> str:
    """Returns the text of the module with a block that matches its table of names."""
    imports = [
        f"    from {module} import {name} as {name}\n"
        for module, names in ppxcls._NAMES_BY_MODULE.items()  # noqa: SLF001  its own script
        for name in names
    ]
    block = "if TYPE_CHECKING:\n" + "".join(imports)
    return BLOCK.sub(lambda _: block, FILE.read_text(encoding="utf-8"), count=1)


if __name__ == "__main__":
    FILE.write_text(module_text(), encoding="utf-8")
