"""Supervisors of several nodes on loopback: how they meet, and what they do when one goes away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppxcls.system.node_group import NodeGroup, Place
from ppxcls.system.rendezvous import JobError
from ppxcls.system.supervisor import Supervisor
from tests.conftest import ROOT, SMALL_NETWORK


@pytest.fixture
def address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def nodes(address: tuple[str, int], count: int, least: int, timeout: float = 5.0) -> list[NodeGroup]:
    return [NodeGroup(address, count, least, timeout) for _ in range(count)]


def test_they_meet_and_meet_again(address: tuple[str, int], pool: ThreadPoolExecutor) -> None:
    group = nodes(address, 3, 3)
    places = list(pool.map(lambda node: node.meet(False), group))
    assert sorted(place.rank for place in places) == [0, 1, 2]
    assert {(place.nodes, place.resume) for place in places} == {(3, False)}
    assert not any(node.is_broken() for node in group)
    leader = next(node for node in group if node.leads)
    others = [node for node in group if not node.leads]
    others[0].leave()
    until(leader.is_broken)
    leader.leave()  # as its supervisor does after it has ended the job
    until(others[1].is_broken)
    places = list(pool.map(lambda node: node.meet(node is others[1]), group))
    assert {(place.nodes, place.resume) for place in places} == {(3, True)}, "the job had begun on one of them"
    for node in group:
        node.end(0)


def test_a_lost_node_is_waited_for_and_a_spare_one_comes_in(address: tuple[str, int], pool: ThreadPoolExecutor) -> None:
    """Of four nodes one is lost: two go on, because three can't have the same samples a step, and the third waits for its turn."""
    group = nodes(address, 4, 1, timeout=1.0)
    list(pool.map(lambda node: node.meet(False), group))
    lost, *left = sorted(group, key=lambda node: node.leads)
    lost.leave()
    leader = left[-1]
    until(leader.is_broken)
    meetings = {node: pool.submit(node.meet, True) for node in left}
    until(lambda: sum(meeting.done() for meeting in meetings.values()) == 2)
    assert meetings[leader].result() == Place(True, 2, 0)
    (spare,) = [node for node, meeting in meetings.items() if not meeting.done()]
    second = next(node for node in left if node not in (spare, leader))
    second.leave()  # lost as well
    until(leader.is_broken)
    assert leader.meet(True) == Place(True, 2, 0)
    assert meetings[spare].result() == Place(True, 2, 1)
    leader.end(0)
    until(lambda: spare.is_broken() or spare.ended is not None)
    assert spare.ended == 0


def test_one_that_comes_during_the_job_hears_of_its_end(address: tuple[str, int], pool: ThreadPoolExecutor) -> None:
    """It waits in the leader's backlog."""
    leader, late = NodeGroup(address, 1, 1, 0.2), NodeGroup(address, 2, 1, 0.2)
    assert leader.meet(False) == Place(False, 1, 0)
    meeting = pool.submit(late.meet, False)
    time.sleep(1.0)  # longer than its patience with a leader that is not there
    assert not meeting.done()
    leader.end(0)
    assert meeting.result() is None
    assert late.ended == 0


def test_a_leader_whose_name_is_not_known_yet_is_waited_for() -> None:
    with pytest.raises(JobError, match=r"the leading node at no-such-host.invalid:9 can't be reached within 0.4 s"):
        NodeGroup(("no-such-host.invalid", 9), 2, 1, 0.2).meet(False)


@pytest.mark.parametrize(
    ("codes", "expected"), [(("0", "0"), (0, 0)), (("0", "5"), (0, 5)), (("2", "9"), (2, 2)), (("75", "75"), (75, 75))]
)
def test_the_codes_of_two_nodes(
    codes: tuple[str, str], expected: tuple[int, int], address: tuple[str, int], pool: ThreadPoolExecutor
) -> None:
    """The first node ends at once, the second one half a second later: a failure stays one though the other node is done."""
    script = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))"

    def job(number: int) -> int:
        words = [sys.executable, "-c", script, str(0.5 * number + 0.5), codes[number]]
        group = lambda stopped: NodeGroup(address, 2, 2, 5.0, stopped)  # noqa: E731
        supervisor = Supervisor(lambda _: words, 0, 0.1, lambda line: None, group)
        code = supervisor._run(Path("/nonexistent/begun"))  # signals can be handled in the main thread alone
        assert supervisor._group
        supervisor._group.end(code)
        return code

    assert tuple(pool.map(job, range(2))) == expected


def test_too_few_nodes(address: tuple[str, int]) -> None:
    leader = NodeGroup(address, 4, 2, 0.3)
    with pytest.raises(JobError, match=r"1 of 4 nodes came to 127.0.0.1:\d+ within 0.3 s; the job can go on with a divisor of 4"):
        leader.meet(False)
    leader.end(1)


def test_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """192.0.2.1 is an address of no machine (RFC 5737)."""

    def refuse(*_: object, **__: object) -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(JobError, match=r"the leading node at 192.0.2.1:9 can't be reached within 0.4 s: Connection refused"):
        NodeGroup(("192.0.2.1", 9), 2, 1, 0.2).meet(False)


def test_a_stranger_on_the_port_counts_for_nothing(address: tuple[str, int], pool: ThreadPoolExecutor) -> None:
    leader = NodeGroup(address, 2, 1, 2.0)
    meeting = pool.submit(leader.meet, False)

    def says(text: bytes) -> None:
        with socket.create_connection(address) as stranger:
            stranger.sendall(text)

    for text in (b"GET / HTTP/1.1\r\nHost: a-long-enough-name\r\n\r\n", b"", b"\xff" * 64):
        with contextlib.suppress(ConnectionError):
            until(lambda: leader.leads)
            says(text)
    assert meeting.result() == Place(False, 1, 0)
    leader.end(0)


def processes_of(words: str) -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if words in Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").replace("\0", " "):
                found.append(int(entry))
    return found


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(other for child in children for other in descendants(int(child)))]


def test_a_job_of_two_nodes_goes_on_with_one(write_config: Callable[..., Path], tmp_path: Path, address: tuple[str, int]) -> None:
    """First a rank is killed, and both nodes come back. Then a whole node is killed, and the other one goes on."""
    keys = {"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK], "Global.hang_timeout": 60.0}
    size = {
        "DataLoader.Train.sampler.batch_size": 2,
        "Global.samples_per_step": 4,
        "Global.epochs": 150,
        "Global.save_interval": 999,
    }
    file = write_config(**keys, **size, **{"Global.save_interval_steps": 1})
    output = tmp_path / "output/SmallNetwork"
    log = output / "train.log"
    launch = ["tools/launch.py", "--pause", "0.2", "--min-nodes", "1", "--join-timeout", "8", "--nnodes", "2"]
    place = ["--master", f"127.0.0.1:{address[1]}", "--host", "127.0.0.1", "--nproc_per_node", "1"]
    said = [tmp_path / f"said{i}" for i in range(2)]
    jobs = []
    for i in range(2):
        command = [sys.executable, *launch, *place, "--log_dir", str(tmp_path / f"log{i}"), "tools/train.py", "-c", str(file)]
        with open(said[i], "wb") as stream:
            jobs.append(subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream))
        until(lambda: len(processes_of(str(file))) >= 1)
        time.sleep(0.5)
    try:
        until(lambda: bool(list(output.glob("step_*.json"))), 120)
        os.kill(descendants(jobs[1].pid)[-1], signal.SIGKILL)
        until(lambda: log.read_text().count("Resumed ") == 1, 120)
        until(lambda: "[Train]" in log.read_text().split("Resumed ")[-1], 60)
        for pid in descendants(jobs[1].pid):
            os.kill(pid, signal.SIGKILL)
        assert jobs[0].wait(timeout=200) == 0, said[0].read_text()
    finally:
        for pid in processes_of(str(file)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    lines = [line for line in said[0].read_text().splitlines() if line.startswith("launch: ") and "have met" in line]
    assert lines == [f"launch: {count} nodes have met; this one is number 0" for count in (2, 2, 1)]
    manifest = json.loads((output / "latest.json").read_text())
    assert manifest["progress"]["epoch"] == 151
    assert (manifest["world_size"], manifest["global_batch"], manifest["update_freq"]) == (1, 2, 2)
    assert "samples per step" not in log.read_text()
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert sorted(set(steps)) == list(range(1, manifest["progress"]["step"] + 1))
