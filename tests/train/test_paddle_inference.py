"""Networks that are compiled for the CPU during evaluation."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.inference
import pytest
from paddle import nn

import ppxcls
from ppxcls.train import paddle_inference
from ppxcls.train.paddle_inference import Compiler, EvaluatedNetwork, InferenceProgram

IMAGES = np.random.default_rng(0).normal(size=(4, 3, 71, 80)).astype("float32")


def twice(network: nn.Layer, coming: int = 0) -> tuple[EvaluatedNetwork, list[np.ndarray]]:
    """Returns three logits of the same batch.

    They are the network's own, those of the batch that is compared, and those of the next batch.
    """
    network.eval()
    evaluated = EvaluatedNetwork(network, coming)
    images = paddle.to_tensor(IMAGES)
    with paddle.no_grad():
        return evaluated, [network(images).numpy(), *(evaluated(images).numpy() for _ in range(2))]


def all_equal(arrays: list[np.ndarray]) -> bool:
    return all(np.array_equal(arrays[0], array) for array in arrays)


@pytest.mark.parametrize("name", ["Xception41", "xception41p"])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_the_compiled_network_gives_the_same_logits(
    name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs parts of ``at_once`` images, after a comparison of two of the four images."""
    monkeypatch.setattr(paddle_inference, "_MIN_PIXELS_TO_COMPILE", 1)
    monkeypatch.setattr(paddle_inference, "_MAX_PIXELS_PER_RUN", at_once * 71 * 80)
    monkeypatch.setattr(paddle_inference, "_MAX_COMPARED_IMAGES", 2)
    network = ppxcls.build_model(name, class_num=5)
    forward = network.forward
    evaluated, (own, compiled, again) = twice(network)
    assert evaluated._predictor is not None
    assert np.abs(compiled - own).max() <= 1e-4 * np.abs(own).max()
    assert not np.array_equal(compiled, own), "rounded otherwise: it is another program"
    assert np.array_equal(compiled, again)
    assert network.forward == forward
    network.train()
    network(paddle.to_tensor(IMAGES)).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if not p.stop_gradient)


def test_images_larger_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2D(3, 4, 3), nn.AdaptiveAvgPool2D(1), nn.Flatten())
    network.eval()
    program = Compiler()(network)
    monkeypatch.setattr(paddle_inference, "_MAX_PIXELS_PER_RUN", 10)
    assert np.allclose(program(IMAGES), network(paddle.to_tensor(IMAGES)).numpy(), atol=1e-5)


def test_it_pays_for_many_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ppxcls.build_model("Xception41", class_num=5)
    monkeypatch.setattr(Compiler, "__call__", lambda *_: pytest.fail("compiled for a few images"))
    assert all_equal(twice(network)[1])
    assert all_equal(twice(network, coming=50)[1])
    asked: list[nn.Layer] = []
    monkeypatch.setattr(Compiler, "__call__", lambda _, asked_for: asked.append(asked_for))
    twice(network, coming=50_000)
    assert asked == [network]


class Odd(nn.Layer):
    """A network that can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        if not paddle.in_dynamic_mode():
            raise TypeError("it wants to see numbers")
        return self.head(images.mean((2, 3)))


def test_a_network_that_cant_be_compiled_is_evaluated_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paddle_inference, "_MIN_PIXELS_TO_COMPILE", 1)
    monkeypatch.setattr(paddle_inference.logger, "warning", pytest.fail)
    evaluated, logits = twice(Odd())
    assert evaluated._predictor is None
    assert all_equal(logits)


def test_a_compiled_network_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle_inference, "_MIN_PIXELS_TO_COMPILE", 1)
    warned: list[str] = []
    monkeypatch.setattr(paddle_inference.logger, "warning", warned.append)
    network = ppxcls.build_model("Xception41", class_num=5)
    monkeypatch.setattr(
        Compiler, "__call__", lambda *_: lambda images: np.full((len(images), 5), 0.5, "float32")
    )
    evaluated, logits = twice(network)
    assert evaluated._predictor is None
    assert all_equal(logits)
    assert len(warned) == 1
    assert "the compiled network's logits differ by" in warned[0]


def test_an_evaluation_gives_the_same_counts(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_config()
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    trainer.fit()
    own = ppxcls.evaluate(ppxcls.load_config(trainer.output_dir))
    monkeypatch.setattr(paddle_inference, "_MIN_PIXELS_TO_COMPILE", 1)
    fast = ppxcls.evaluate(ppxcls.load_config(trainer.output_dir))
    assert fast.pop("loss") == pytest.approx(own.pop("loss"), rel=1e-4)
    assert fast.pop("CELoss") == pytest.approx(own.pop("CELoss"), rel=1e-4)
    assert fast == own


def test_a_network_that_is_static_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle_inference, "_MIN_PIXELS_TO_COMPILE", 1)
    monkeypatch.setattr(Compiler, "__call__", lambda *_: pytest.fail("compiled twice"))
    network = Odd()
    network.forward = paddle.jit.to_static(network.forward, full_graph=True)
    assert not EvaluatedNetwork(network, 1000)._may_compile


class _Untraceable(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2D(3, 8, 3)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Uses a parameter before it fails."""
        self.first(images)
        raise ValueError("not to be traced")


def test_a_tracing_that_fails_leaves_nothing_to_the_next() -> None:
    """Paddle stores the parameters of a failed program under the program's address.

    The next program may have the same address.
    """
    for _ in range(10):
        with pytest.raises(ValueError, match="not to be traced"):
            Compiler()(_Untraceable())
        gc.collect()
        network = nn.Conv2D(3, 4, 3)
        compiled = Compiler()(network)
        assert np.allclose(compiled(IMAGES), network(paddle.to_tensor(IMAGES)).numpy(), atol=1e-5)


def test_the_cpus_network_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle has GPUs, but the device is the CPU."""
    asked: list[str] = []
    monkeypatch.setattr(paddle_inference, "InferenceProgram", lambda *_, device, **__: asked.append(device))
    network = ppxcls.build_model("Xception41", class_num=5)
    network.eval()
    Compiler()(network)
    assert asked == ["cpu"]


def test_weights_of_a_later_evaluation_are_new_and_threads_take_turns() -> None:
    network = ppxcls.build_model("Xception41", class_num=5)
    network.eval()
    compiler = Compiler()
    first = compiler(network)
    with paddle.no_grad():
        bias = dict(network.named_parameters())["_exit_flow._out.bias"]
        bias.set_value(bias + 1)
    second = compiler(network)
    images = [IMAGES, IMAGES[:, :, ::-1]]
    before = [first(batch) for batch in images]
    assert np.allclose(second(IMAGES), before[0] + 1, atol=1e-5)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: first(images[i % 2]), range(30)))
    assert all(np.array_equal(found[i], before[i % 2]) for i in range(30))


@pytest.mark.every_paddle
@pytest.mark.parametrize(
    ("current", "device", "expected"),
    [
        ("gpu:3", None, ("enable_use_gpu", 100, 3)),
        ("gpu", None, ("enable_use_gpu", 100, 0)),
        ("npu:2", None, ("disable_gpu",)),
        ("cpu", None, ("disable_gpu",)),
        ("xpu:1", None, ("disable_gpu",)),
        ("gpu:3", "cpu", ("disable_gpu",)),
    ],
)
def test_a_predictor_uses_the_current_device(
    current: str, device: str | None, expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    class Settings:
        """Records the calls of Paddle's own settings."""

        def __init__(self, *files: str) -> None:
            self.files = files

        def __getattr__(self, name: str) -> Callable[..., None]:
            assert hasattr(real_settings, name), name
            return lambda *arguments: calls.append((name, *arguments))

    real_settings = paddle.inference.Config
    monkeypatch.setattr(paddle.inference, "Config", Settings)
    monkeypatch.setattr(paddle.inference, "create_predictor", lambda settings: settings)
    monkeypatch.setattr(paddle, "get_device", lambda: current)
    InferenceProgram(Path("a.json"), Path("a.pdiparams"), threads=2, device=device)
    choices = [call for call in calls if call[0] in ("enable_use_gpu", "enable_custom_device", "disable_gpu")]
    assert choices == [expected]
    assert (("set_cpu_math_library_num_threads", 2) in calls) == (expected == ("disable_gpu",))
