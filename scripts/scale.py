"""What many GPUs need from storage, processors, links and disks, computed from figures of one machine.

    python scripts/scale.py                                  # the tables of docs/scale.md, for Xception41
    python scripts/scale.py --gpu "H100" --images 1400 --cards 8 --nodes 16 --link 50

Nothing here was measured on several machines. The rates of the GPUs are derived (docs/measurements.md), those
of the links are their makers'.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

BATCH = 64  # images of a card in a step, as PaddleClas's recipe has it
IMAGE_BYTES = 110e3  # a mean JPEG of ImageNet's training set: 138 GB in 1,281,167 files
DECODED_PER_CORE = 700.0  # images/s a core: docs/measurements.md
LATENCY = 20e-6  # seconds of a message between nodes
BUFFER = 25e6  # bytes that are sent at once: Global.comm_buffer_size
OVERLAP = 2 / 3  # share of a step that is the backward pass, in which gradients travel
JITTER = 0.03  # standard deviation of a card's step, as a share
NETWORKS = {
    "Xception41": 22.92e6,
    "Xception65": 35.87e6,
    "Xception71": 37.68e6,
    "xception65": 39.92e6,
}  # trained parameters
GPUS = {
    "V100": (376.0, 150e9),
    "A100": (852.0, 300e9),
    "H100": (1400.0, 450e9),
}  # images/s of one; bytes/s of its NVLink, one way
LINKS = {
    "25 Gb Ethernet": 3.1e9,
    "100 Gb InfiniBand": 12.5e9,
    "8 x 400 Gb InfiniBand": 400e9,
}  # bytes/s of a node, one way


@dataclass(frozen=True)
class Cluster:
    """Equal nodes.

    Attributes:
        images: images/s that one card trains.
        cards: of a node.
        nodes: number of nodes.
        inside: bytes/s between the cards of a node, one way.
        link: bytes/s of a node to the others, one way.
    """

    images: float
    cards: int = 8
    nodes: int = 1
    inside: float = 150e9
    link: float = 12.5e9

    @property
    def count(self) -> int:
        """Number of cards."""
        return self.cards * self.nodes


def ring(size: float, members: int, bandwidth: float, latency: float = 0.0) -> float:
    """Seconds of an all-reduce around a ring: each member sends 2 (n - 1) / n of the bytes, in 2 (n - 1)
    messages."""
    return 2 * (members - 1) / members * size / bandwidth + 2 * (members - 1) * latency


def all_reduce(size: float, cluster: Cluster) -> float:
    """Seconds: inside the nodes, then between them, where each card of a node carries its share."""
    between = ring(size, cluster.nodes, cluster.link, math.ceil(size / BUFFER) * LATENCY)
    return ring(size, cluster.cards, cluster.inside) + between


def slowest(members: int, jitter: float = JITTER, draws: int = 4000) -> float:
    """By how much the slowest of several cards is slower than their mean, if steps are normally distributed;
    drawn at random."""
    if members == 1:
        return 1.0
    rng = np.random.default_rng(0)
    return 1 + jitter * float(np.mean([rng.standard_normal(members).max() for _ in range(draws)]))


def step(parameters: float, cluster: Cluster, bytes_each: int = 4) -> float:
    """Seconds of a step: computation, the slowest card, and what of the all-reduce the backward pass does not
    hide."""
    compute = BATCH / cluster.images * slowest(cluster.count)
    return compute + max(0.0, all_reduce(bytes_each * parameters, cluster) - OVERLAP * compute)


def efficiency(parameters: float, cluster: Cluster) -> float:
    """Images/s of all cards over that of one, times their number."""
    return BATCH / cluster.images / step(parameters, cluster)


def rows(parameters: float) -> list[list[str]]:
    """The table of Xception41, whose rates are known."""
    found = []
    for gpu, (images, inside) in GPUS.items():
        for nodes in (1, 8, 64):
            cells = [gpu, f"{8 * nodes}"]
            rate = 0.0
            for name, link in LINKS.items():
                cluster = Cluster(images, 8, nodes, inside, link)
                share = efficiency(parameters, cluster)
                rate = cluster.count * images * share if name == "100 Gb InfiniBand" else rate
                cells.append(f"{share:.0%}")
            cells += [
                f"{rate:,.0f}",
                f"{rate * IMAGE_BYTES / 1e9:.2g} GB/s",
                f"{math.ceil(rate / nodes / DECODED_PER_CORE)}",
            ]
            found.append(cells)
    return found


def table(parameters: float) -> str:
    heads = ["card", "cards", *LINKS, "images/s", "from storage", "decoding cores a node"]
    lines = [heads, ["---"] * len(heads), *rows(parameters)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def all_reduce_table() -> str:
    """Bytes and milliseconds of an all-reduce of each network on 8 nodes, by link; H100's NVLink inside."""
    lines = [["network", "bytes", *LINKS], ["---"] * (2 + len(LINKS))]
    for name, parameters in NETWORKS.items():
        times = [
            all_reduce(4 * parameters, Cluster(1.0, 8, 8, GPUS["H100"][1], link)) for link in LINKS.values()
        ]
        lines.append(
            [name, f"{4 * parameters / 1e6:.0f} MB", *(f"{1000 * seconds:.1f} ms" for seconds in times)]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", help="a name for the line; without it, the tables are printed")
    parser.add_argument(
        "--images", type=float, default=GPUS["A100"][0], help="images/s of one card, such as gpu.py measures"
    )
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--link", type=float, default=12.5, help="GB/s of a node, one way")
    parser.add_argument("--inside", type=float, default=300.0, help="GB/s between cards of a node, one way")
    given = parser.parse_args()
    if given.gpu is None:
        print(f"{table(NETWORKS['Xception41'])}\n\n{all_reduce_table()}")
        return
    cluster = Cluster(given.images, given.cards, given.nodes, 1e9 * given.inside, 1e9 * given.link)
    for name, parameters in NETWORKS.items():  # if this network trains at so many images/s
        share = efficiency(parameters, cluster)
        rate = cluster.count * given.images * share
        sent = 1000 * all_reduce(4 * parameters, cluster)
        print(
            f"{name} on {cluster.count} x {given.gpu}: {share:.0%}, "
            f"{rate:,.0f} images/s; all-reduce {sent:.1f} ms of a step of "
            f"{1000 * step(parameters, cluster):.0f} ms; {rate * IMAGE_BYTES / 1e9:.2f} GB/s from storage; "
            f"{math.ceil(rate / given.nodes / DECODED_PER_CORE)} cores a node to decode"
        )


if __name__ == "__main__":
    main()
