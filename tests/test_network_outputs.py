"""A user's own network that returns no logits: each tool says so in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import paddle
import pytest

import ppxcls

PLUGIN = '''
from paddle import nn

import ppxcls


class Network(nn.Layer):
    def __init__(self, class_num, kind):
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(3, class_num)

    def forward(self, images):
        logits = self.fc(images.mean([2, 3]))
        if self.kind == "tuple":
            return logits, images.mean([1])
        return {"logits": logits} if self.kind == "dict" else logits.unsqueeze(-1)


@ppxcls.MODELS.register
def Odd(class_num: int = 3, kind: str = "tuple") -> nn.Layer:
    """A network."""
    return Network(class_num, kind)
'''


TEXTS = {
    "tuple": r"a tuple of a tensor \[\d, 3\], a tensor \[\d, 71, 71\]",
    "dict": r"a dict of 'logits': a tensor \[\d, 3\]",
    "shape": r"a tensor \[\d, 3, 1\]",
}


def test_the_message_names_the_network_and_its_output(
    write_config: Callable[..., Path], tmp_path: Path, images: Path
) -> None:
    (tmp_path / "odd_network.py").write_text(PLUGIN)
    for kind, text in TEXTS.items():
        file = write_config(
            **{
                "Global.plugins": ["odd_network.py"],
                "Arch": {"name": "Odd", "class_num": 3, "kind": kind},
                "Global.pretrained_model": f"{tmp_path}/w.pdparams",
                "Global.output_dir": f"{tmp_path}/{kind}",
                "Global.save_inference_dir": f"{tmp_path}/exported",
            }
        )
        config = ppxcls.load_config(file, trust=True)
        paddle.save(ppxcls.build_model("Odd", class_num=3, kind=kind).state_dict(), f"{tmp_path}/w.pdparams")
        actions: list[Callable[[], object]] = [
            ppxcls.build_trainer(config).fit,
            functools.partial(ppxcls.evaluate, config),
            functools.partial(ppxcls.infer, config, str(images / "val")),
            functools.partial(ppxcls.export, config, ["paddle"]),
        ]
        message = rf"^the network Odd: expected that it returns logits \[N, C\], received {text}$"
        for action in actions:
            with pytest.raises(ppxcls.ConfigError, match=message):
                action()
