"""A server with a small model, and what its processes take."""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 120.0
OTHER_ADDRESS = "127.0.0.2"  # of another client on this machine
_SAMPLE_SECONDS = 0.02


class Model:
    """An exported model, made once.

    Attributes:
        folder: folder of the export.
        image: content of an honest image.
        class_id: its class.
    """

    def __init__(self) -> None:
        place = Path(tempfile.mkdtemp(prefix="hostile-model-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        # S603: runs a script of this folder.
        result = subprocess.run(  # noqa: S603
            [sys.executable, str(Path(__file__).with_name("tiny_model.py")), str(place)],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        match = re.search(r"^class (\d+)$", result.stdout, re.MULTILINE)
        if not match:
            raise RuntimeError(f"no model: {result.stderr[-2000:]}")
        self.folder = place / "export"
        self.image = (place / "0.png").read_bytes()
        self.class_id = int(match[1])


@functools.cache
def the_model() -> Model:
    """Returns the model of all cases."""
    return Model()


class Server:
    """A process of ``ppxcls serve`` on a free port.

    Attributes:
        process: the process.
        port: port that it listens at.
        temporary_folder: folder for its temporary files.
    """

    def __init__(self, *words: str) -> None:
        self.temporary_folder = Path(tempfile.mkdtemp(prefix="hostile-server-"))
        command = [sys.executable, str(ROOT / "ppxcls/__main__.py"), "serve", str(the_model().folder)]
        variables = {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary_folder),
            "OPENCV_TEMP_PATH": str(self.temporary_folder),
        }
        # S603: runs this package with words of these cases.
        self.process = subprocess.Popen(  # noqa: S603
            [*command, "--port", "0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables},
        )
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read_lines, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            found_ports = [re.search(r"listening at http://[\d.]+:(\d+)", line) for line in self.lines]
            if ports := [int(match[1]) for match in found_ports if match]:
                self.port = ports[0]
                return
            time.sleep(0.05)
        raise RuntimeError(f"the server did not start: {self.lines[-5:]}")

    def _read_lines(self) -> None:
        assert self.process.stdout
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def connect(self, address: str = "127.0.0.1", timeout_s: float = 20.0) -> socket.socket:
        """Returns a connection from an address of this machine."""
        return socket.create_connection(
            ("127.0.0.1", self.port), timeout=timeout_s, source_address=(address, 0)
        )

    def honest_problem(self, address: str = OTHER_ADDRESS, within_s: float = 5.0) -> str | None:
        """Sends an honest image, and again after a 503; returns what is wrong with the answer, or None."""
        start = time.monotonic()
        status = 0
        text = ""
        while time.monotonic() - start < within_s:
            connection = http.client.HTTPConnection(
                "127.0.0.1", self.port, timeout=within_s, source_address=(address, 0)
            )
            try:
                connection.request("POST", "/predict", the_model().image)
                response = connection.getresponse()
                status, text = response.status, response.read().decode()
            except OSError as error:
                text = f"{type(error).__name__}: {error}"
            finally:
                connection.close()
            if status == 200:
                class_id = json.loads(text)["class_ids"][0]
                seconds = time.monotonic() - start
                if seconds > within_s:
                    return f"an honest client waited {seconds:.1f} s"
                return None if class_id == the_model().class_id else f"another class: {class_id}"
            time.sleep(0.1)
        return f"an honest client of {address} got no answer in {within_s:g} s: {status} {text[:100]}"

    def decoder_pids(self) -> list[int]:
        """Returns the ids of the processes that decode."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return sorted(int(pid) for file in children for pid in file.read_text().split())

    def leftover_problem(self) -> str | None:
        """Returns which temporary files remain; None if there are none."""
        for _ in range(20):
            files = [file for file in self.temporary_folder.rglob("*") if file.is_file()]
            if not files:
                return None
            time.sleep(0.1)
        return f"temporary files remain: {files[0].name}"

    def resident_mib(self) -> float:
        """Returns the resident memory of the server and its decoders; shared pages count once."""
        pages = 0
        for pid in [self.process.pid, *self.decoder_pids()]:
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{pid}/statm").read_text().split()
                pages += int(fields[1]) - (0 if pid == self.process.pid else int(fields[2]))
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int | None:
        """Sends a signal, and returns the exit code; None if the server had to be killed."""
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.remove()

    def remove(self) -> None:
        """Kills the process and removes its files."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.temporary_folder, ignore_errors=True)


class MemoryWatch:
    """Measures the largest resident memory of a server; a context manager.

    Attributes:
        start_mib: memory at the beginning, in MiB.
        peak_mib: largest memory, in MiB.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._end = threading.Event()
        self.start_mib = self.peak_mib = server.resident_mib()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(_SAMPLE_SECONDS):
            self.peak_mib = max(self.peak_mib, self._server.resident_mib())

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@functools.cache
def the_server() -> Server:
    """Returns the server of most cases. It ends with this process."""
    server = Server()
    atexit.register(server.remove)
    return server
