"""Cases of hostile weights: checkpoints, pickles, and safetensors headers."""

from __future__ import annotations

import itertools
import json
import pickle
import pickletools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing.mutation import Case, mutate

import ppxcls
from ppxcls.checkpoints.pickle_reader import read_arrays
from ppxcls.checkpoints.pickle_whitelist import RefusedError


def checkpoint_cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Yields cases of damaged checkpoints, PaddleClas's included.

    In a third of the cases the digests match the damaged data, so that the damage gets past the digest check.
    """
    import hashlib

    import paddle
    from paddle import nn

    from ppxcls.checkpoints.files import write_checkpoint
    from ppxcls.checkpoints.progress import read_snapshot
    from ppxcls.train.learner import Learner
    from ppxcls.train.losses import build_loss
    from ppxcls.train.optimizers import build_optimizer

    model = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Flatten(), nn.Linear(16, 3))
    lr = {"name": "ConstLR", "learning_rate": 0.1}
    schedule = ppxcls.build_lr_schedule(lr, 1, steps_per_epoch=1)
    optimizer, scheduler = build_optimizer(
        {"name": "Momentum", "lr": lr}, dict(model.named_parameters()), lr_at=schedule
    )
    learner = Learner(
        model, build_loss([{"CELoss": {}}]), optimizer=optimizer, scheduler=scheduler, schedule=schedule
    )
    learner.step(paddle.randn([2, 3, 4, 4]), paddle.to_tensor([0, 2]), 1.0, is_update_step=True)
    learner.progress.best = {"metric": "top1", "value": 0.5, "epoch": 1}
    snapshot = learner.state()
    assert snapshot is not None
    write_checkpoint([folder / "latest"], snapshot.parts, manifest=snapshot.manifest({}))
    paddleclas_prefix = folder / "theirs"
    paddle.save(model.state_dict(), f"{paddleclas_prefix}.pdparams")
    paddle.save([optimizer.state_dict()], f"{paddleclas_prefix}.pdopt")
    paddle.save({"metric": 0.5, "epoch": 3}, f"{paddleclas_prefix}.pdstates")
    original_files = {file.name: file.read_bytes() for file in folder.iterdir()}
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        stem = ("latest", "latest", "theirs")[i % 3]
        names = [name for name in sorted(original_files) if name.startswith(stem)]
        mutated_files = dict(original_files)
        name = names[int(rng.integers(len(names)))]
        mutated_files[name] = mutate(original_files[name], rng)
        if i % 3 == 1:
            manifest = json.loads(original_files["latest.json"])
            for extension, part in manifest["parts"].items():
                data = mutated_files[f"latest{extension}"]
                part.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
            if name != "latest.json":
                mutated_files["latest.json"] = json.dumps(manifest).encode()

        def load(mutated_files: dict[str, bytes] = mutated_files, stem: str = stem) -> None:
            for name, data in mutated_files.items():
                (folder / name).write_bytes(data)
            learner.load(read_snapshot(folder / stem)[0])

        yield load, ppxcls.CheckpointError


def _opcodes(data: bytes) -> list[bytes]:
    """Returns the opcodes of a pickle with their arguments."""
    positions = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(positions)]


def pickle_cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Yields cases of weight pickles with opcodes left out, repeated, exchanged or replaced.

    Opcodes are mutated instead of bytes, so that the reader gets far into the pickle.
    """
    value = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "t": ("name", np.ones(2, np.int64)),
        "s": np.float32(0.5),
        "d": {"a": [1, None, True, 2.5, "text"], "b": b"bytes"},
    }
    streams = [_opcodes(pickle.dumps(value, protocol)) for protocol in (2, 3, 4, 5)]
    replacements = sorted({opcode for stream in streams for opcode in stream if len(opcode) < 40})
    replacements += [
        bytes([code])
        for code in b"oidlbRcCQP0123stuaeN]})(\x81\x82\x84\x85\x86\x87\x88\x89\x90\x91\x92\x93\x94\x97\x98"
    ]
    replacements += [
        b"\x8c\x01O",
        b"\x8c\x02V8",
        b"\x8c\x05dtype",
        b"\x8c\x06system",
        b"\x8c\x02os",
        b"cos\nsystem\n",
        b"cnumpy\ndtype\n",
    ]
    replacements += [
        b"r\xff\xff\xff\x7f",
        b"j\xff\xff\xff\xff",
        b"\x8a\xff" + bytes(255),
        b"\x8e" + b"\xff" * 8,
        b"X\xff\xff\xff\x7f",
    ]
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        stream = list(streams[i % 4])
        for _ in range(int(rng.integers(1, 6))):
            position, kind = int(rng.integers(1, len(stream))), int(rng.integers(5))
            if kind == 0:
                del stream[position]
            elif kind == 1:
                stream[position:position] = stream[position : position + int(rng.integers(1, 9))] * int(
                    rng.integers(1, 4)
                )
            elif kind == 2:
                other_position = int(rng.integers(1, len(stream)))
                stream[position], stream[other_position] = stream[other_position], stream[position]
            elif kind == 3:
                stream[position] = replacements[int(rng.integers(len(replacements)))]
            else:
                stream.insert(position, replacements[int(rng.integers(len(replacements)))])
        if b"." not in stream:
            stream.append(b".")

        def read(data: bytes = b"".join(stream)) -> None:
            _check_plain_values(read_arrays(data))

        yield read, RefusedError


def _check_plain_values(value: Any) -> None:
    """Checks all types and reads every number, because a forged type would turn numbers into pointers."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain_values(item)
    elif isinstance(value, np.ndarray | np.generic):
        assert value.dtype.kind in "biuf"
        assert str(np.asarray(value).sum())
    else:
        assert value is None or isinstance(value, bool | int | float | str | bytes)


def safetensors_cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Yields cases of safetensors headers with invalid offsets, shapes and types."""
    from ppxcls.models.foreign_weights import read_foreign_weights

    target = folder / "w.safetensors"
    numbers = [0, 1, 4, 8, 24, 25, -1, 1 << 31, 1 << 62, (1 << 64) - 1, 2.5, "8", None, []]
    types = ["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "O", "", 3, None]
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        header: dict[str, Any] = {
            "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b.weight": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
        }
        for _ in range(int(rng.integers(0, 4))):
            entry = header[("a.weight", "b.weight")[int(rng.integers(2))]]
            key = ("dtype", "shape", "data_offsets")[int(rng.integers(3))]
            if key == "dtype":
                entry[key] = types[int(rng.integers(len(types)))]
            elif isinstance(entry[key], list) and entry[key]:
                entry[key][int(rng.integers(len(entry[key])))] = numbers[int(rng.integers(len(numbers)))]
        text = json.dumps(header).encode()
        length = len(text) if rng.random() < 0.8 else int(rng.choice([0, 1, len(text) + 1, 1 << 40]))
        data = struct.pack("<Q", length) + (mutate(text, rng) if i % 5 == 4 else text) + bytes(32)

        def read(data: bytes = data) -> None:
            target.write_bytes(data)
            _check_plain_values(read_foreign_weights(target))

        yield read, ppxcls.CheckpointError
