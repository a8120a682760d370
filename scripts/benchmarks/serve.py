"""Measures ``ppxcls serve`` under load from this machine.

    python scripts/benchmarks/serve.py MODEL IMAGES --clients 50 --seconds 60

Each client sends one image after another, and compares each answer with that of ``predict`` in this
process. Prints images/s, latencies, and the numbers of wrong and lost answers. The exit code is 1 if there
are any wrong or lost answers. Answers with status 503 are counted separately, and the client then sends
another image.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import ppxcls
from ppxcls.deploy.images import find_images


def client(
    port: int,
    images: list[tuple[bytes, int]],
    end: float,
    counts: collections.Counter[str],
    delays: list[float],
) -> None:
    """Sends images until ``end``.

    Args:
        port: port of the server.
        images: image files' contents, each with its expected class id.
        end: time to stop, on the monotonic clock.
        counts: output, numbers of right, wrong, lost and busy answers.
        delays: output, seconds of each answer.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    number = threading.get_ident()
    while time.monotonic() < end:
        number += 1
        body, expected_class = images[number % len(images)]
        start = time.monotonic()
        try:
            connection.request("POST", "/predict", body)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            counts["lost"] += 1
            connection.close()
            continue
        if response.status == 503:
            counts["busy"] += 1
            time.sleep(0.1)
            continue
        delays.append(time.monotonic() - start)
        is_right = response.status == 200 and json.loads(text)["class_ids"][0] == expected_class
        counts["right" if is_right else "wrong"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    files = find_images(arguments.images)[:100]
    predictions = ppxcls.load(arguments.model).predict(files)
    images = [(Path(p.file).read_bytes(), p.class_ids[0]) for p in predictions if not p.error]
    with socket.create_server(("127.0.0.1", 0)) as free_socket:
        port = free_socket.getsockname()[1]
    command = [sys.executable, "-m", "ppxcls", "serve", arguments.model, "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT)  # noqa: S603  the user's own
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        counts: collections.Counter[str] = collections.Counter()
        delays: list[float] = []
        end = time.monotonic() + arguments.seconds
        threads = [
            threading.Thread(target=client, args=(port, images, end, counts, delays))
            for _ in range(arguments.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.terminate()
        code = server.wait()
    delays.sort()
    print(
        f"{counts['right'] / arguments.seconds:.1f} images/s with "
        f"{arguments.clients} clients; {dict(counts)}; exit code {code}"
    )
    print(
        f"delay: median {1000 * median(delays):.0f} ms, 99 % "
        f"below {1000 * delays[int(0.99 * len(delays))]:.0f} ms"
    )
    sys.exit(bool(counts["wrong"] or counts["lost"]))


if __name__ == "__main__":
    main()
