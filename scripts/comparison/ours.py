"""``ppxcls fit --minutes M``, as a user types it.

Its time ends with the last writing of ``best_model``. Then ``fit`` evaluates the photographs in ``test/`` and
writes its report; the evaluations of the other peers do not count either. A part of the photographs in
``train/`` chooses between its results. At the end the photographs in ``test/`` are predicted, separately.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recording import Recording, peer_arguments  # scripts/comparison/recording.py


def run_folder(output: Path) -> Path:
    """Returns the run of a finished ``fit``.

    Raises:
        FileNotFoundError: there is none.
    """
    configs = [path for path in output.rglob("config.yaml") if list(path.parent.glob("best_model.*"))]
    if not configs:
        raise FileNotFoundError(f"{output}: expected a run with best_model")
    return max(configs, key=lambda path: path.stat().st_mtime).parent


def accuracy(run: Path, photographs: Path) -> float:
    """Returns the share of photographs, in folders of classes, whose class is predicted."""
    import ppxcls

    files = [file for file in sorted(photographs.glob("*/*")) if file.is_file()]
    predictions = ppxcls.load(run, len(files)).predict([str(file) for file in files], topk=1)
    names = [prediction.label_names[:1] for prediction in predictions]
    return sum(name == [file.parent.name] for name, file in zip(names, files, strict=True)) / len(files)


def stages(run: Path) -> Any:
    """Returns the stages of ``fit`` with their seconds; empty if it wrote none."""
    file = run / "stages.json"
    return json.loads(file.read_text(encoding="utf-8"))["stages"] if file.exists() else []


def main() -> None:
    arguments = peer_arguments(__doc__)
    recording = Recording(arguments)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ppxcls", "fit", str(arguments.photographs)]
        command += ["--weights", str(arguments.trunk), "--minutes", f"{arguments.minutes:g}"]
        command += ["--output", folder, "-o", f"Global.seed={arguments.seed}"]
        subprocess.run(command, check=True)  # noqa: S603
        run = run_folder(Path(folder))
        recording.seconds = max(file.stat().st_mtime for file in run.glob("best_model.*")) - arguments.started
        recording.add("fit", 1, accuracy(run, arguments.photographs / "test"))
        recording.write(stages=stages(run))


if __name__ == "__main__":
    main()
