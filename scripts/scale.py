"""Computes the storage, processors, network and disks that many GPUs need, from measurements of one machine.

    python scripts/scale.py                                  # the tables of docs/scale.md, for Xception41
    python scripts/scale.py --gpu "H100" --images 1228 --cards 8 --nodes 16 --link 50

Nothing here was measured on several machines. The rates of the GPUs are derived (docs/measurements.md). The
bandwidths of the links are the manufacturers' figures.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

IMAGES_PER_CARD = 64  # images per card and step, as in PaddleClas's recipe
IMAGE_BYTES = 110e3  # mean JPEG of ImageNet's training set: 138 GB in 1,281,167 files
DECODED_IMAGES_PER_CORE_SECOND = 320.0  # images/s per core, see docs/measurements.md
LATENCY_SECONDS = 20e-6  # seconds per message between nodes
BUFFER_BYTES = 25e6  # bytes sent at once, Global.comm_buffer_size
BACKWARD_SHARE = 2 / 3  # share of a step in the backward pass, during which gradients are sent
STEP_TIME_DEVIATION = 0.03  # standard deviation of a card's step time, relative to its mean
# Number of trained parameters.
NETWORKS = {
    "Xception41": 22.92e6,
    "Xception65": 35.87e6,
    "Xception71": 37.68e6,
    "xception65": 39.92e6,
}
# Images/s of one card; NVLink bandwidth in bytes/s, one direction.
GPUS = {
    "V100": (330.0, 150e9),
    "A100": (747.0, 300e9),
    "H100": (1228.0, 450e9),
}
# Bandwidth of a node in bytes/s, one direction.
LINKS = {
    "25 Gb Ethernet": 3.1e9,
    "100 Gb InfiniBand": 12.5e9,
    "8 x 400 Gb InfiniBand": 400e9,
}


@dataclass(frozen=True)
class Cluster:
    """A cluster of equal nodes.

    Attributes:
        images: training rate of one card in images/s.
        cards: number of cards per node.
        nodes: number of nodes.
        node_bandwidth: bandwidth between the cards of a node in bytes/s, one direction.
        link: bandwidth from a node to the others in bytes/s, one direction.
    """

    images: float
    cards: int = 8
    nodes: int = 1
    node_bandwidth: float = 150e9
    link: float = 12.5e9

    @property
    def count(self) -> int:
        """Number of cards."""
        return self.cards * self.nodes


def ring(size: float, members: int, bandwidth: float, latency: float = 0.0) -> float:
    """Returns the seconds of an all-reduce around a ring.

    Each member sends 2 (n - 1) / n of the bytes, in 2 (n - 1) messages.
    """
    return 2 * (members - 1) / members * size / bandwidth + 2 * (members - 1) * latency


def all_reduce(size: float, cluster: Cluster) -> float:
    """Returns the seconds of an all-reduce, first inside the nodes and then between them.

    Between the nodes, each card carries its share.
    """
    between = ring(size, cluster.nodes, cluster.link, math.ceil(size / BUFFER_BYTES) * LATENCY_SECONDS)
    return ring(size, cluster.cards, cluster.node_bandwidth) + between


def slowest(members: int, jitter: float = STEP_TIME_DEVIATION, draws: int = 4000) -> float:
    """Returns the expected step time of the slowest of several cards, relative to their mean.

    Step times are assumed to be normally distributed. The value is estimated from random draws.
    """
    if members == 1:
        return 1.0
    rng = np.random.default_rng(0)
    return 1 + jitter * float(np.mean([rng.standard_normal(members).max() for _ in range(draws)]))


def step(parameters: float, cluster: Cluster, bytes_each: int = 4) -> float:
    """Returns the seconds of a step: compute of the slowest card, and the unhidden all-reduce time."""
    compute = IMAGES_PER_CARD / cluster.images * slowest(cluster.count)
    return compute + max(0.0, all_reduce(bytes_each * parameters, cluster) - BACKWARD_SHARE * compute)


def efficiency(parameters: float, cluster: Cluster) -> float:
    """Returns the rate of all cards, relative to the rate of one card times the number of cards."""
    return IMAGES_PER_CARD / cluster.images / step(parameters, cluster)


def rows(parameters: float) -> list[list[str]]:
    """Returns the rows of the table of Xception41, the network with known rates."""
    table_rows = []
    for gpu, (images, node_bandwidth) in GPUS.items():
        for nodes in (1, 8, 64):
            cells = [gpu, f"{8 * nodes}"]
            rate = 0.0
            for name, link in LINKS.items():
                cluster = Cluster(images, 8, nodes, node_bandwidth, link)
                share = efficiency(parameters, cluster)
                rate = cluster.count * images * share if name == "100 Gb InfiniBand" else rate
                cells.append(f"{share:.0%}")
            cells += [
                f"{rate:,.0f}",
                f"{rate * IMAGE_BYTES / 1e9:.2g} GB/s",
                f"{math.ceil(rate / nodes / DECODED_IMAGES_PER_CORE_SECOND)}",
            ]
            table_rows.append(cells)
    return table_rows


def table(parameters: float) -> str:
    headings = ["card", "cards", *LINKS, "images/s", "from storage", "decoding cores a node"]
    lines = [headings, ["---"] * len(headings), *rows(parameters)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def all_reduce_table() -> str:
    """Returns a table of all-reduces on 8 nodes: bytes of each network, and milliseconds by link.

    The cards of a node are connected by the NVLink of H100.
    """
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
    parser.add_argument("--gpu", help="name for the printed lines; without it, the tables are printed")
    parser.add_argument(
        "--images", type=float, default=GPUS["A100"][0], help="images/s of one card, as measured by gpu.py"
    )
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--link", type=float, default=12.5, help="bandwidth of a node in GB/s, one direction")
    parser.add_argument(
        "--inside", type=float, default=300.0, help="bandwidth between cards of a node in GB/s, one direction"
    )
    arguments = parser.parse_args()
    if arguments.gpu is None:
        print(f"{table(NETWORKS['Xception41'])}\n\n{all_reduce_table()}")
        return
    cluster = Cluster(
        arguments.images, arguments.cards, arguments.nodes, 1e9 * arguments.inside, 1e9 * arguments.link
    )
    for name, parameters in NETWORKS.items():  # assumes that each network trains at this rate
        share = efficiency(parameters, cluster)
        rate = cluster.count * arguments.images * share
        all_reduce_ms = 1000 * all_reduce(4 * parameters, cluster)
        print(
            f"{name} on {cluster.count} x {arguments.gpu}: {share:.0%}, "
            f"{rate:,.0f} images/s; all-reduce {all_reduce_ms:.1f} ms of a step of "
            f"{1000 * step(parameters, cluster):.0f} ms; {rate * IMAGE_BYTES / 1e9:.2f} GB/s from storage; "
            f"{math.ceil(rate / arguments.nodes / DECODED_IMAGES_PER_CORE_SECOND)} cores a node to decode"
        )


if __name__ == "__main__":
    main()
