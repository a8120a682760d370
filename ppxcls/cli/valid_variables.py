"""Ends a command in one line if an environment variable is invalid.

Commands import this module first, because libraries read their variables when they are imported.
"""

from __future__ import annotations

import sys

from ppxcls.system.variables import VariableError, require_valid

EXIT_USAGE = 2

try:
    require_valid()
except VariableError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_USAGE)
