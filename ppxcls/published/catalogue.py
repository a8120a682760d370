"""The published weights files of the networks, with what their publishers say about them.

Sources of the facts: PaddleClas's table of models (develop), timm 1.0 (``timm/models/xception.py``,
``xception_aligned.py``, ``results/results-imagenet.csv``, and the pages of its repositories on the hub),
Keras 3 (``src/applications/xception.py`` and its list of models), and the README of
pretrained-models.pytorch.
"""

from __future__ import annotations

from dataclasses import dataclass

_PADDLECLAS_FOLDER = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph"
_KERAS_FOLDER = "https://storage.googleapis.com/tensorflow/keras-applications/xception"
_CADENE_FOLDER = "http://data.lip6.fr/cadene/pretrainedmodels"
_TIMM_RELEASE = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene"
_APACHE, _MIT, _BSD = "Apache-2.0", "MIT", "BSD-3-Clause"
RECOMMENDED_NETWORK = "Xception"  # for a folder of photographs, if no network is named


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A weights file that somebody has published.

    Attributes:
        name: the word that selects it.
        network: name of the network in this package.
        publisher: who publishes it: ``PaddleClas``, ``timm``, ``Keras`` or ``Cadene``.
        file: name of the file in the cache.
        addresses: addresses of the file, which are tried in this order; empty for a repository of the hub.
        repository: repository of the Hugging Face hub, ``OWNER/NAME``, with ``model.safetensors``; None if it
            is elsewhere.
        top1: share of the images of ImageNet's validation set that it classifies, from 0 to 1, as published;
            None for a trunk without a classifier.
        top5: share of these images whose class is among the first five, as published.
        licence: licence of the weights.
        megabytes: size in millions of bytes, rounded. If the publisher states none, it is 4 bytes for each
            parameter.
        size: size in bytes; None if it is not published.
        sha256: SHA-256 as the publisher states it; None if it is not published.
        sha256_start: first digits of the SHA-256, which torch's files have in their names; empty for none.
        md5: MD5 as the publisher states it; None if it is not published.
    """

    name: str
    network: str
    publisher: str
    file: str
    addresses: tuple[str, ...] = ()
    repository: str | None = None
    top1: float | None = None
    top5: float | None = None
    licence: str
    megabytes: int
    size: int | None = None
    sha256: str | None = None
    sha256_start: str = ""
    md5: str | None = None

    @property
    def has_classifier(self) -> bool:
        """False for a trunk, which classifies nothing by itself."""
        return self.top1 is not None

    @property
    def source(self) -> str:
        """Address of the file or of its repository, for people."""
        return self.addresses[0] if self.addresses else f"https://huggingface.co/{self.repository}"


def _paddleclas(network: str, top1: float, top5: float, megabytes: int) -> PublishedWeights:
    file = f"{network}_pretrained.pdparams"
    return PublishedWeights(
        name=network,
        network=network,
        publisher="PaddleClas",
        file=file,
        addresses=(f"{_PADDLECLAS_FOLDER}/{file}",),
        top1=top1,
        top5=top5,
        licence=_APACHE,
        megabytes=megabytes,
    )


def _keras(suffix: str, top1: float | None, *, top5: float | None, size: int, md5: str) -> PublishedWeights:
    file = f"xception_weights_tf_dim_ordering_tf_kernels{suffix}.h5"
    return PublishedWeights(
        name=f"Xception{suffix}",
        network="Xception",
        publisher="Keras",
        file=file,
        addresses=(f"{_KERAS_FOLDER}/{file}",),
        top1=top1,
        top5=top5,
        licence=_MIT,
        megabytes=round(size / 1e6),
        size=size,
        md5=md5,
    )


def _timm(
    name: str, top1: float, *, top5: float, megabytes: int, sha256: str | None = None
) -> PublishedWeights:
    return PublishedWeights(
        name=name,
        network=name.partition(".")[0],
        publisher="timm",
        file=f"{name}.safetensors",
        repository=f"timm/{name}",
        top1=top1,
        top5=top5,
        licence=_APACHE,
        megabytes=megabytes,
        sha256=sha256,
    )


# The first entry of a network is its default.
CATALOGUE = (
    _paddleclas("Xception41", 0.7930, 0.9453, 92),
    _paddleclas("Xception65", 0.8100, 0.9549, 144),
    _paddleclas("Xception71", 0.8111, 0.9545, 152),
    _paddleclas("Xception41_deeplab", 0.7955, 0.9438, 108),
    _paddleclas("Xception65_deeplab", 0.8032, 0.9449, 160),
    _keras("", 0.790, top5=0.945, size=91_884_032, md5="0a58e3b7378bc2990ea3b43d5981f1f6"),
    _keras("_notop", None, top5=None, size=83_683_744, md5="b0042744bf5b25fce3cb969f33bebb97"),
    PublishedWeights(
        name="legacy_xception.tf_in1k",
        network="legacy_xception",
        publisher="timm",
        file="xception-43020ad28.pth",
        addresses=(
            f"{_TIMM_RELEASE}/xception-43020ad28.pth",
            f"{_CADENE_FOLDER}/xception-43020ad28.pth",
        ),
        top1=0.79040,
        top5=0.94382,
        licence=_APACHE,
        megabytes=92,
        sha256_start="43020ad28",
    ),
    PublishedWeights(
        name="xception-b5690688",
        network="legacy_xception",
        publisher="Cadene",
        file="xception-b5690688.pth",
        addresses=(f"{_CADENE_FOLDER}/xception-b5690688.pth",),
        top1=0.78888,
        top5=0.94292,
        licence=_BSD,
        megabytes=92,
        sha256_start="b5690688",
    ),
    _timm("xception41.tf_in1k", 0.78504, top5=0.94276, megabytes=108),
    _timm("xception65.ra3_in1k", 0.83182, top5=0.96592, megabytes=160),
    _timm("xception65.tf_in1k", 0.79556, top5=0.94654, megabytes=160),
    _timm("xception71.tf_in1k", 0.79872, top5=0.94928, megabytes=170),
    _timm(
        "xception41p.ra3_in1k",
        0.81972,
        top5=0.95796,
        megabytes=108,
        sha256="84cc7268d4d0973769ac78db2c1d07e5bbfbcab2447d6f1df3f7b755ba7b2dea",
    ),
    _timm("xception65p.ra3_in1k", 0.83136, top5=0.96484, megabytes=159),
)


def entry_of(name: str) -> PublishedWeights | None:
    """Returns the weights of a name; None if there are none.

    The name of a network stands for its default weights. ``timm/`` may precede timm's names.
    """
    wanted_name = name.removeprefix("timm/")
    is_of_timm = wanted_name != name
    entries = [entry for entry in CATALOGUE if entry.publisher == "timm" or not is_of_timm]
    exact_entry = next((entry for entry in entries if entry.name == wanted_name), None)
    return exact_entry or next((entry for entry in entries if entry.network == wanted_name), None)


def default_entry(network: str) -> PublishedWeights | None:
    """Returns the default weights of a network; None if nobody has published any."""
    return next((entry for entry in CATALOGUE if entry.network == network), None)


def entry_of_repository(repository: str) -> PublishedWeights | None:
    """Returns the weights in a repository of the hub; None if they are not in the catalogue."""
    return next((entry for entry in CATALOGUE if entry.repository == repository), None)


def word_names() -> list[str]:
    """Returns all words of the catalogue: names of weights, and networks with default weights."""
    names = [entry.name for entry in CATALOGUE]
    return list(dict.fromkeys([*names, *(entry.network for entry in CATALOGUE)]))
