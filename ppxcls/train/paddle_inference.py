"""Paddle Inference: exported programs, and networks that are compiled for the CPU while they are evaluated."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.models.tracing import to_static
from ppxcls.system.environment import own_threads, restore_threads
from ppxcls.system.logs import logger

Array = np.ndarray[Any, Any]

_WORTH_IT = 250 * 299 * 299  # pixels, from which on compiling costs less time than it saves
_AT_ONCE = (
    16 * 299 * 299
)  # pixels; with more, oneDNN's intermediate results take new memory each time, and a third more time
_COMPARED = 8  # images, which the network itself takes seconds for
_TOLERANCE = 1e-4  # relative to the largest logit; float32 sums differ with their order
_LOCK = threading.Lock()  # a predictor has one input and one output, and uses all threads anyway


class InferenceProgram:
    """Paddle's predictor for a program, on a GPU if there is one and it may be used. Threads take turns.

    Args:
        model: file of the program.
        weights: file of its weights.
        threads: number of threads on the CPU.
        with_onednn: whether oneDNN computes on the CPU.
        may_use_gpu: whether a GPU may be used.

    Raises:
        CheckpointError: the files are not an exported model.
    """

    def __init__(
        self, model: Path, weights: Path, threads: int, with_onednn: bool = True, may_use_gpu: bool = True
    ) -> None:
        from paddle import inference

        settings = inference.Config(str(model), str(weights))
        settings.disable_glog_info()
        self._on_gpu = (
            may_use_gpu and paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
        )
        if self._on_gpu:
            settings.enable_use_gpu(512, 0)
        else:
            settings.disable_gpu()
            if with_onednn:
                settings.enable_mkldnn()
            settings.set_cpu_math_library_num_threads(threads)
        settings.switch_ir_optim(True)
        try:
            self._predictor = inference.create_predictor(settings)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{model}: not an exported model: {' '.join(str(error).split())[-200:]}"
            ) from None

    def __call__(self, images: Array) -> Array:
        """The output for a batch. On the CPU it is computed in pieces."""
        count = max(len(images), 1)
        at_once = count if self._on_gpu else max(1, _AT_ONCE * 3 * count // max(images.size, 1))  # 3 channels
        parts = [self._run(images[i : i + at_once]) for i in range(0, count, at_once)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, images: Array) -> Array:
        with _LOCK:
            source = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
            source.reshape(images.shape)
            source.copy_from_cpu(np.ascontiguousarray(images))
            self._predictor.run()
            restore_threads()
            return self._predictor.get_output_handle(self._predictor.get_output_names()[0]).copy_to_cpu()


def program_file(folder: Path) -> Path:
    """The program of an exported folder: ``inference.json`` of Paddle 3, or ``inference.pdmodel`` of Paddle 2.

    Raises:
        CheckpointError: there is neither.
    """
    for name in ("inference.json", "inference.pdmodel"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: neither inference.json nor inference.pdmodel")


class _Traced(nn.Layer):
    """A layer around the network, so that tracing leaves the network's own ``forward`` as it is."""

    def __init__(self, network: nn.Layer) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """[N, 3, H, W] to [N, class_num]."""
        return self.network(images)


class Compiler:
    """Makes predictors of a network, which is traced once: later ones have its weights of then."""

    def __init__(self) -> None:
        self._network: nn.Layer | None = None
        self._program: Any = None

    def __call__(self, network: nn.Layer) -> InferenceProgram:
        """A predictor with copies of the network's weights."""
        if self._network is not network:
            traced = _Traced(network)
            traced.eval()
            spec = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
            self._network, self._program = network, to_static(traced, spec)
        with tempfile.TemporaryDirectory(prefix="ppxcls-") as name:
            paddle.jit.save(self._program, f"{name}/inference")
            weights = Path(name) / "inference.pdiparams"
            return InferenceProgram(program_file(Path(name)), weights, own_threads(), may_use_gpu=False)


class EvaluatedNetwork:
    """A network in evaluation mode.

    On the CPU, with enough to do, it is compiled for oneDNN, which folds batch norms.

    Some images of the first compiled batch are compared with the network itself. If they differ, or the
    network can't be compiled, the network goes on by itself. Its weights must not change meanwhile.

    Args:
        network: in evaluation mode.
        coming: number of images that are known to come; 0 to count those that have come.
        compiler: of earlier evaluations of the network.
    """

    def __init__(self, network: nn.Layer, coming: int = 0, compiler: Compiler | None = None) -> None:
        self._network = network
        self._compiler = compiler or Compiler()
        self._coming = coming
        self._pixels = 0  # of the images so far
        self._predictor: InferenceProgram | None = None
        is_static = "concrete_program" in dir(type(network.forward))  # to ask for it would trace the network
        self._may_compile = paddle.get_device() == "cpu" and _has_onednn() and not is_static

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        """Float32 [N, 3, H, W] to logits, float32 [N, class_num]."""
        if self._may_compile and self._is_worth_it(images):
            self._may_compile = False  # one attempt
            self._predictor = self._compared(images[:_COMPARED])
        if self._predictor is not None:
            return paddle.to_tensor(self._predictor(images.numpy()))
        return self._network(images)

    def _is_worth_it(self, images: paddle.Tensor) -> bool:
        size = images.shape[2] * images.shape[3]
        self._pixels += images.shape[0] * size
        return max(self._pixels, self._coming * size) >= _WORTH_IT

    def _compared(self, images: paddle.Tensor) -> InferenceProgram | None:
        """A predictor that gives the network's logits for these images; None if there is none."""
        expected = self._network(images).numpy()
        if not np.isfinite(expected).all():
            return None
        try:
            made = self._compiler(self._network)
            received = made(images.numpy())
        except Exception as error:  # of tracing a network of the user's, of the compiler, or of a full disk
            logger.debug(f"the network is not compiled: {error}")
            return None
        difference = float(np.abs(received - expected).max())
        if (
            difference <= _TOLERANCE * max(float(np.abs(expected).max()), 1e-3)
            and (received.argmax(1) == expected.argmax(1)).all()
        ):
            return made
        logger.warning(
            f"compiled, the network gives other logits, by {difference:.2e}; it is evaluated as it is"
        )
        return None


def _has_onednn() -> bool:
    names = ("is_compiled_with_onednn", "is_compiled_with_mkldnn")  # of Paddle 3.3, and before
    return any(getattr(paddle.base.core, name, bool)() for name in names)
