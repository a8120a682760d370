"""Data sets: numbered samples, each with a label."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ppxcls.config.registry import Block, Components, Registry
from ppxcls.data.decode import Image, ImageParts
from ppxcls.data.errors import DataError
from ppxcls.data.label_mapping import LabelMapping
from ppxcls.data.list_index import ListIndex
from ppxcls.data.read_file import read_file
from ppxcls.data.transforms import (
    Compose,
    Generator,
    TransformOps,
    build_transforms,
    split_for_device,
    starts_with_decoding,
)
from ppxcls.data.views import Views, with_views
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import reason_of


@dataclass
class DatasetKeys:
    """The key that all data sets have.

    Attributes:
        batch_transform_ops: mixing transforms, applied to whole batches on the device.
    """

    batch_transform_ops: Annotated[list[Block], Components("batch transform")] | None = None


class Dataset:
    """Base class of the data sets.

    A subclass needs labels and a method ``read``.

    Args:
        labels: class of each sample, [N], any integer dtype.
        transform_ops: transforms in order; None for no transforms.
        class_num: number of classes, for a check of the labels; None for no check.

    Attributes:
        source: name of the data set in messages, such as its list file.
        keeps_bytes: False if ``read`` returns other bytes than the original files have, as for packed data.
        labels: array of the labels, [N].
        label_mapping: mapping that has changed the labels of the list; None if they are the list's own.
        transform: all transforms.
        host_transform: transforms that run on the host; ``device_stage`` holds those for the device.
        views: views of each image, which lie below each other in the image; None for the image alone.

    Raises:
        DataError: there are no samples, the labels are not integers [N], or a label is outside ``class_num``.
    """

    source: str = ""
    keeps_bytes: bool = True
    label_mapping: LabelMapping | None = None
    views: Views | None = None

    def __init__(
        self, labels: Any, transform_ops: TransformOps | None = None, class_num: int | None = None
    ) -> None:
        self.labels: Array = np.asarray(labels)
        self.source = self.source or type(self).__name__
        self.transform = build_transforms(transform_ops or [])
        self.host_transform, self.device_stage = split_for_device(self.transform)
        if self.labels.size and (self.labels.ndim != 1 or self.labels.dtype.kind not in "iu"):
            raise DataError(
                f"{self.source}: expected integer labels [N], "
                f"received {self.labels.dtype} {list(self.labels.shape)}"
            )
        if not self.labels.size:
            raise DataError(f"{self.source}: the data set has no samples")
        for index in (int(np.argmin(self.labels)), int(np.argmax(self.labels))):
            label = self.labels[index]
            if class_num is not None and not 0 <= label < class_num:
                allowed_labels = f"class_num = {class_num}, labels 0 to {class_num - 1}"
                raise DataError(f"{self.line(index)}: the label {label} is outside {allowed_labels}")

    def __len__(self) -> int:
        return int(self.labels.size)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        """Returns the image after all transforms, with new random choices at each call, and its label.

        Raises:
            DataError: the same conditions as for ``load``.
        """
        return self._load(self.transform, index, None), int(self.labels[index])

    def read(self, index: int) -> bytes | Image | ImageParts:
        """Returns the input of the first transform: file bytes, their parts, or an image, uint8 [H, W, 3].

        Several threads call this method at the same time.

        Raises:
            OSError, ValueError: the sample can't be read.
        """
        raise NotImplementedError

    def listed(self, index: int) -> str:
        """Returns the sample's name in the data set, such as its path in the list."""
        return str(index)

    def path(self, index: int) -> str:
        """Returns the path of the sample's file.

        The default is the sample's name, for samples without files.
        """
        return self.listed(index)

    def line(self, index: int) -> str:
        """Returns the place of the sample in the list, as ``list:line``."""
        return f"{self.source}:{index + 1}"

    def digest(self) -> str:
        """Returns the SHA-256 of the labels and of ``source``.

        A run is not resumed with a data set that has a different digest.
        """
        return hashlib.sha256(self.source.encode() + self.labels.astype(np.int64).tobytes()).hexdigest()

    def map_labels(self, mapping: LabelMapping) -> None:
        """Replaces each label of the list by the id of the network's class of the same name.

        Raises:
            DataError: a sample has a class that the network does not have, or that has no name.
        """
        names = mapping.list_classes.names
        for index in (int(np.argmin(self.labels)), int(np.argmax(self.labels))):
            if not 0 <= (label := int(self.labels[index])) < len(names):
                source = mapping.list_classes.source
                raise DataError(
                    f"{self.line(index)}: the label {label} has no name in {source}, "
                    f"which has {len(names):,} names"
                )
        class_ids = mapping.class_ids[self.labels]
        unknown_indices = np.flatnonzero(class_ids < 0)
        if unknown_indices.size:
            index = int(unknown_indices[0])
            raise DataError(f"{self.line(index)}: {mapping.unknown_class_message(int(self.labels[index]))}")
        if not np.array_equal(class_ids, self.labels):
            self.label_mapping = mapping
        self.labels = class_ids

    def labelled_digest(self) -> str:
        """Returns ``digest``, or if labels were mapped, a SHA-256 of it and of the mapping."""
        digest = self.digest()
        if self.label_mapping is None:
            return digest
        return hashlib.sha256(digest.encode() + self.label_mapping.class_ids.tobytes()).hexdigest()

    def announce(self, indices: Iterable[int]) -> None:
        """Receives the samples that will be read soon. A data set that can read ahead overrides this."""

    def check_files(self) -> None:
        """Checks that every sample's file exists, if the samples have files.

        Raises:
            DataError: some files are missing.
        """

    def load(self, index: int, rng: Generator | None = None, transform: Compose | None = None) -> Image:
        """Reads, decodes and transforms one image.

        Args:
            index: number of the sample.
            rng: source of the random choices; None for an unpredictable one.
            transform: transforms to use instead of the data set's host transforms.

        Returns:
            The image after the host transforms.

        Raises:
            DataError: the image can't be read or decoded, or does not fit a transform. The message names the
                file and its list line.
        """
        return self._load(transform or self.host_transform, index, rng)

    def with_transforms(self, transform_ops: TransformOps) -> Dataset:
        """Returns a copy of the data set: the same samples with other transforms."""
        dataset = copy.copy(self)
        dataset.transform = build_transforms(transform_ops)
        dataset.host_transform, dataset.device_stage = split_for_device(dataset.transform)
        return dataset

    def set_views(self, views: Views) -> None:
        """Makes the images of an evaluation contain several views.

        Raises:
            DataError: the transforms do not allow these views; see ``with_views``.
        """
        self.host_transform, _ = with_views(self.host_transform, views)
        self.views = views

    def _load(self, transform: Compose, index: int, rng: Generator | None) -> Image:
        try:
            return transform(self.read(index), rng)
        except OSError as error:
            reason = reason_of(error)
        except (ValueError, MemoryError) as error:
            reason = str(error) or "too large for the memory"
        raise DataError(f"{sample_place(self, index)}: {reason}")


def sample_place(dataset: Dataset, index: int) -> str:
    """Returns the path of a sample and its place in the list, for messages."""
    return f"{dataset.path(index)} ({dataset.line(index)})"


DATASETS: Registry[Dataset] = Registry(
    "dataset",
    program_parameters=("class_num", "patience"),
    common=DatasetKeys,
    base=Dataset,
    optional_members=("keeps_bytes", "label_mapping", "map_labels", "labelled_digest", "views", "set_views"),
)


@DATASETS.register
class ImageNetDataset(Dataset):
    """Images of a list file with lines ``path label``.

    Args:
        image_root: folder to which the paths in the list are relative.
        cls_label_path: list file.
        transform_ops: transforms in order; None for the encoded bytes.
        delimiter: text between path and label; None for a space.
        class_num: number of classes, for a check of the labels; None for no check.
        patience: time in seconds to retry a disk that does not answer.

    Raises:
        DataError: the list can't be used, a path leads out of ``image_root``, or a label is outside
            ``class_num``.
        ValueError: the delimiter is empty, or ``transform_ops`` does not begin with DecodeImage.
    """

    def __init__(
        self,
        image_root: str,
        cls_label_path: str,
        *,
        transform_ops: TransformOps | None = None,
        delimiter: str | None = None,
        class_num: int | None = None,
        patience: float = 0.0,
    ) -> None:
        if delimiter == "":
            raise ValueError("expected a delimiter of at least one character, received ''")
        if transform_ops is not None and not starts_with_decoding(transform_ops):
            raise ValueError(
                "expected DecodeImage as the first of transform_ops, because files are read as bytes"
            )
        self.image_root = Path(image_root)
        self.index = ListIndex(cls_label_path, delimiter or " ")
        self.source = str(self.index.file)
        self._patience = patience
        outside_index = self.index.first_outside(self.image_root)
        if outside_index is not None:
            path = self.index.path(outside_index)
            raise DataError(
                f"{self.index.line(outside_index)}: expected a path inside image_root, "
                f"{self.image_root}, received {path!r}"
            )
        super().__init__(self.index.labels, transform_ops, class_num)

    def read(self, index: int) -> bytes:
        """Returns the bytes of the sample's file."""
        return read_file(self.path(index), self._patience)

    def listed(self, index: int) -> str:
        """Returns the path in the list."""
        return self.index.path(index)

    def path(self, index: int) -> str:
        """Returns the path of the sample's file."""
        return os.path.join(self.image_root, self.index.path(index))

    def line(self, index: int) -> str:
        """Returns ``file:line`` of a sample."""
        return self.index.line(index)

    def digest(self) -> str:
        """Returns the SHA-256 of the list file."""
        return self.index.digest()

    def check_files(self) -> None:
        """Checks that every listed file exists.

        Raises:
            DataError: some files are missing. The message gives their number, and the first few of them with
                their list lines.
        """
        missing_indices = [i for i in range(len(self)) if not os.path.isfile(self.path(i))]
        if missing_indices:
            examples = "; ".join(sample_place(self, i) for i in missing_indices[:5])
            raise DataError(
                f"{len(missing_indices):,} of {len(self):,} listed files are missing: "
                f"{examples}{'; ...' if len(missing_indices) > 5 else ''}"
            )
