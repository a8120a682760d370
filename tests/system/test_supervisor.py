"""The supervisor with small commands, and with a job that has a killed rank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from ppxcls.system.supervisor import Supervisor, host_problem
from tests.conftest import ROOT, SMALL_NETWORK

# Counts its runs in a file, creates the PPXCLS_BEGUN file on the second run, and exits with the given codes
# one after the other.
SCRIPT = """
import os, sys
from pathlib import Path
count = Path(sys.argv[1])
number = int(count.read_text()) if count.exists() else 0
count.write_text(str(number + 1))
with open(sys.argv[1] + ".words", "a") as words:
    print(*sys.argv[3:], file=words)
if number == 1:
    Path(os.environ["PPXCLS_BEGUN"]).touch()
os._exit(int(sys.argv[2].split(",")[number]))
"""


@pytest.mark.parametrize(
    ("codes", "restarts", "code", "runs", "last"),
    [
        ("0", 5, 0, 1, None),
        (
            "1,1,0",
            5,
            0,
            3,
            "launch: the job ended with code 1 after 0 s; restart 2 of 5 in 0 s, from its newest checkpoint",
        ),
        ("2", 5, 2, 1, None),
        ("75", 5, 75, 1, None),
        (
            "1,7,7",
            2,
            7,
            3,
            "launch: the job ended with code 7 after 0 s; it has failed 3 times in a row; giving up",
        ),
    ],
)
def test_what_is_restarted(
    codes: str, restarts: int, code: int, runs: int, last: str | None, tmp_path: Path
) -> None:
    said: list[str] = []
    count = tmp_path / "count"
    words = [sys.executable, "-c", SCRIPT, str(count), codes]
    supervisor = Supervisor(
        lambda resume: [*words, *(["--resume"] if resume else [])], restarts, pause=0.1, report=said.append
    )
    assert supervisor.run() == code
    assert int(count.read_text()) == runs
    assert (said[-1] if said else None) == last
    assert (tmp_path / "count.words").read_text().splitlines() == ["", "", "--resume"][:runs], (
        "it goes on from a checkpoint only after it had begun"
    )


GETS_ON = """
import os, sys
from pathlib import Path
count = Path(sys.argv[1])
number = int(count.read_text()) if count.exists() else 0
count.write_text(str(number + 1))
sys.path.insert(0, sys.argv[3])
from ppxcls.system.supervisor import record_start
record_start(min(2 * number, int(sys.argv[2])))  # it goes on from a later checkpoint each time
os._exit(1)
"""


def test_a_job_that_gets_on_is_not_given_up(tmp_path: Path) -> None:
    """The job fails repeatedly, each time with a later checkpoint, up to step 12.

    Then it fails repeatedly at the same step, and the supervisor gives up.
    """
    said: list[str] = []
    words = [sys.executable, "-c", GETS_ON, str(tmp_path / "count"), "12", str(ROOT)]
    assert Supervisor(lambda _: words, 3, pause=0.01, report=said.append).run() == 1
    assert int((tmp_path / "count").read_text()) == 7 + 3
    assert said[5].split(";")[1] == " restart 1 of 3 in 0 s, from its newest checkpoint"
    assert said[-1].endswith("it has failed 4 times in a row; giving up")


REFUSES = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from ppxcls.system.supervisor import record_refusal
record_refusal()
sys.exit(256 - signal.SIGTERM)  # as Paddle's launcher does if it has ended the first process by a signal
"""


def test_a_refused_job_is_not_repeated_though_the_launcher_reports_a_signal() -> None:
    said: list[str] = []
    words = [sys.executable, "-c", REFUSES, str(ROOT)]
    assert Supervisor(lambda _: words, 3, pause=0.01, report=said.append).run() == 2
    assert said == []


@pytest.mark.parametrize(
    ("words", "address", "is_problem"),
    [
        (["--nnodes", "2", "--master", "10.0.0.1:80", "tools/train.py"], "127.0.1.1", True),
        (["--nnodes=2", "tools/train.py"], "127.0.0.1", True),
        (["--nnodes", "2", "tools/train.py"], None, True),
        (["--nnodes", "2", "tools/train.py"], "10.0.0.2", False),
        (["--nnodes", "2", "--host", "10.0.0.2", "tools/train.py"], "127.0.0.1", False),
        (["--nnodes=2", "--host=10.0.0.2", "tools/train.py"], "127.0.0.1", False),
        (["--nproc_per_node", "2", "tools/train.py"], "127.0.0.1", False),
    ],
)
def test_nodes_that_could_not_meet(
    words: list[str], address: str | None, is_problem: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_name(_: str) -> str:
        if address is None:
            raise OSError("unknown name")
        return address

    monkeypatch.setattr("socket.gethostbyname", by_name)
    problem = host_problem(words)
    assert (problem is not None) == is_problem
    assert problem is None or "add --host with its own address" in problem


def test_signals_are_passed_on_and_end_it(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, "
        "lambda *_: sys.exit(75))\nprint('ready', flush=True)\n"
    )
    job = f"[sys.executable, '-c', {script + 'time.sleep(60)'!r}]"
    code = (
        "import sys\nfrom ppxcls.system.supervisor import "
        f"Supervisor\nsys.exit(Supervisor(lambda _: {job}, 9).run())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75


@pytest.mark.slow
def test_a_job_whose_rank_is_killed_goes_on(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """One of two processes is killed after a checkpoint inside the first epoch.

    The result is that of an uninterrupted run.
    """
    keys = {"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK]}
    file = write_config(
        **keys,
        **{"Global.epochs": 40, "Global.save_interval_steps": 1, "DataLoader.Train.sampler.batch_size": 2},
    )
    output = tmp_path / "output/SmallNetwork"
    command = [
        "--pause",
        "0.5",
        "--nproc_per_node",
        "2",
        "--log_dir",
        str(tmp_path / "log"),
        "tools/train.py",
        "-c",
        str(file),
    ]
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "ppxcls", "launch", *command], cwd=ROOT, stdout=said, stderr=said
        )
        deadline = time.monotonic() + 120
        while not list(output.glob("step_*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        ranks = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_rank(pid, str(file))]
        os.kill(max(ranks), signal.SIGKILL)
        assert process.wait(timeout=200) == 0, (tmp_path / "said").read_text()
    text = (tmp_path / "said").read_text()
    assert text.count("launch: the job ended with ") == 1
    assert "restart 1 of 10 in 0 s, from its newest checkpoint" in text
    assert json.loads((output / "latest.json").read_text())["progress"]["epoch"] == 41
    assert not list(output.glob("earlier_*"))
    assert ppxcls.load_config(output).Global.checkpoints is None


def is_rank(pid: int, config: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return False
    return (
        config in words
        and not any("paddle.distributed.launch" in word for word in words)
        and "tools/launch.py" not in words
    )
