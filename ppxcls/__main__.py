"""Entry point of ``python -m ppxcls VERB ...``. Paddle's launcher runs this file by its path."""

import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent)
if sys.path[0] == _PACKAGE:  # run by its path; modules must be importable only by the package's name
    sys.path[0] = str(Path(_PACKAGE).parent)

from ppxcls.cli.verbs import main  # noqa: E402

if __name__ == "__main__":
    main()
