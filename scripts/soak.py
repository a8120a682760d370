"""Trains two processes under ``ppxcls launch`` with a fault every few seconds.

    python scripts/soak.py --minutes 60 --seed 1

The seed determines the faults: a rank, the launcher or the supervisor is killed, a rank is stopped, the disk
is filled, or the run's folder is removed. The output folder is a small disk of its own, for which the script
needs ``unshare``. At the end the run is stopped, and then finishes its epoch. Another run trains the same
number of epochs without faults. Weights, optimizer and progress must be bit-identical.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import yaml

from ppxcls.checkpoints.files import CheckpointError, read_checkpoint, read_manifest
from tests.conftest import SMALL_NETWORK, small_config, write_images

HANG_TIMEOUT_SECONDS = 20
AUTO_RESUME = ["-o", "Global.checkpoints=auto"]


class Soak:
    """A training job, and the faults that are caused in it."""

    def __init__(self, folder: Path, network: str, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.faults: collections.Counter[str] = collections.Counter()
        self.disk = folder / "disk"
        for name, count in (("train", 24), ("val", 7)):
            write_images(folder / "data", count, name=name)
        self.config = folder / "config.yaml"
        keys = {
            "Arch": {"name": network, "class_num": 3},
            "Global.plugins": [SMALL_NETWORK],
            "Global.epochs": 100_000,
            "Global.save_interval": 100_000,
            "Global.save_interval_steps": 2,
            "Global.hang_timeout": HANG_TIMEOUT_SECONDS,
            "DataLoader.Train.sampler.batch_size": 2,
            "Optimizer.lr": {"name": "ConstLR", "learning_rate": 0.001},
        }
        self.config.write_text(
            yaml.safe_dump(small_config(folder / "data", self.disk, **keys), sort_keys=False)
        )
        self.run = self.disk / network
        self.job = self._start()

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "ppxcls",
            "launch",
            "--restarts",
            "1000",
            "--pause",
            "0.2",
            "--nproc_per_node",
            "2",
        ]
        command += [
            "--log_dir",
            str(self.folder / "log"),
            "tools/train.py",
            "--trust",
            "-c",
            str(self.config),
            *AUTO_RESUME,
            *words,
        ]
        with open(self.folder / "said", "ab") as log_file:
            return subprocess.Popen(command, cwd=ROOT, stdout=log_file, stderr=log_file)

    def step(self) -> int:
        """Returns the step of the newest checkpoint, or 0 if there is none."""
        with contextlib.suppress(CheckpointError):
            return int(read_manifest(self.run / "latest")["progress"]["step"])
        return 0

    def processes(self) -> list[list[int]]:
        """Returns the process ids of the supervisor, of the launcher, and of the ranks."""
        levels = [[self.job.pid]]
        for _ in range(2):
            levels.append([child for pid in levels[-1] for child in _children(pid)])
        return levels

    def fault(self) -> None:
        """Causes a random fault, and restarts the supervisor if it was killed."""
        weights = {self.kill_rank: 10, self.kill_launcher: 6, self.kill_supervisor: 4, self.stop_rank: 2}
        weights |= {self.fill_disk: 2, self.remove_folder: 1}
        (fault,) = self.rng.choices(list(weights), list(weights.values()))
        if fault():
            self.faults[fault.__name__] += 1
        if self.job.poll() is not None:
            self.job = self._start()

    def kill_rank(self) -> bool:
        return self._signal(2, signal.SIGKILL)

    def kill_launcher(self) -> bool:
        return self._signal(1, signal.SIGKILL)

    def kill_supervisor(self) -> bool:
        """Kills the supervisor and all its descendants, as if the machine were switched off."""
        for pid in [pid for level in self.processes() for pid in level]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.job.wait()
        return True

    def stop_rank(self) -> bool:
        if not self._signal(2, signal.SIGSTOP):
            return False
        time.sleep(HANG_TIMEOUT_SECONDS + 10)
        return True

    def fill_disk(self) -> bool:
        filler = self.disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as stream:
            while stream.write(bytes(1 << 14)):
                pass
        time.sleep(self.rng.uniform(5, 25))
        filler.unlink()
        return True

    def remove_folder(self) -> bool:
        shutil.rmtree(self.run, ignore_errors=True)
        return True

    def _signal(self, level: int, number: int) -> bool:
        pids = self.processes()[level]
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(pids), number)
        return bool(pids)

    def finish(self) -> int:
        """Stops the run, then lets it finish its epoch. Returns the number of epochs."""
        self.job.send_signal(signal.SIGTERM)
        self.job.wait()
        time.sleep(5)  # if the launcher was killed just before, its ranks need time to end
        epochs = max(read_manifest(self.run / "latest")["progress"]["epoch"], 1)
        self.job = self._start("-o", f"Global.epochs={epochs}")
        assert self.job.wait() == 0, (self.folder / "said").read_text()[-2000:]
        return int(epochs)


def run_undisturbed(soak: Soak, epochs: int) -> Path:
    """Trains the same number of epochs without faults. Returns the run's folder."""
    output = soak.folder / "undisturbed"
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
        "--log_dir",
        str(soak.folder / "log2"),
    ]
    command += [
        "tools/train.py",
        "-c",
        str(soak.config),
        "-o",
        f"Global.epochs={epochs}",
        "-o",
        f"Global.output_dir={output}",
    ]
    subprocess.run(
        [*command, "-o", "Global.save_interval_steps=null"], check=True, cwd=ROOT, capture_output=True
    )
    return output / soak.run.name


def find_difference(first_prefix: Path, second_prefix: Path) -> str | None:
    """Returns a description of the first difference of two checkpoints, or None if they are equal."""
    (parts, manifest), (other_parts, other_manifest) = (
        read_checkpoint(first_prefix),
        read_checkpoint(second_prefix),
    )
    for values in (manifest["progress"], other_manifest["progress"]):
        del values["started"]
    if manifest["progress"] != other_manifest["progress"]:
        return f"progress: {manifest['progress']} and {other_manifest['progress']}"
    for part in parts:
        pairs = zip(_arrays(parts[part]), _arrays(other_parts[part]), strict=True)
        if not all(np.array_equal(first, second) for first, second in pairs):
            return f"{part} differs"
    return None


def _arrays(state: dict[str, Any]) -> list[Any]:
    return [value for value in state.values() if isinstance(value, np.ndarray)]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--network", default="Xception41")
    parser.add_argument("--disk", default="700m", help="size of the output disk, such as 700m")
    # The script runs itself again in the namespace with the mounted disk.
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "disk").mkdir()
            mount = f'mount -t tmpfs -o size={arguments.disk} none {folder}/disk && exec "$@"'
            script_command = [sys.executable, *sys.argv, "--folder", folder]
            command = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh", *script_command]
            sys.exit(subprocess.run(command, check=False).returncode)
    soak = Soak(Path(arguments.folder), arguments.network, arguments.seed)
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        time.sleep(soak.rng.uniform(5, 45))
        soak.fault()
        print(
            f"{(end - time.monotonic()) / 60:5.1f} min left, step {soak.step()}, {dict(soak.faults)}",
            flush=True,
        )
    epochs = soak.finish()
    difference = find_difference(soak.run / "latest", run_undisturbed(soak, epochs) / "latest")
    print(
        f"{sum(soak.faults.values())} faults in {arguments.minutes:g} "
        f"minutes: {dict(soak.faults)}; {epochs} epochs"
    )
    print(
        f"differs from the undisturbed run: {difference}"
        if difference
        else "equal to the undisturbed run, bit by bit"
    )
    sys.exit(bool(difference))


if __name__ == "__main__":
    main()
