"""Paddle Inference: exported programs, and networks that are compiled for evaluation on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.models.first_convolution import input_channels
from ppxcls.models.logits import checked_logits
from ppxcls.models.tracing import to_static
from ppxcls.system.arrays import Array
from ppxcls.system.environment import restore_threads, thread_count
from ppxcls.system.logs import logger
from ppxcls.system.temporary_folder import temporary_folder

_MIN_PIXELS_TO_COMPILE = 250 * 299 * 299  # total of all images; for fewer, compiling does not save time
# Above this number, oneDNN allocates new memory in each run and takes a third more time.
_MAX_PIXELS_PER_RUN = 16 * 299 * 299
_MAX_COMPARED_IMAGES = 8  # images; the network itself needs seconds for them
_TOLERANCE = 1e-4  # relative to the largest logit; float32 sums depend on their order
_FIRST_POOL_MB = 100  # memory of a GPU that a predictor takes at once; it grows if needed
_LOCK = threading.Lock()  # a predictor has one input and one output buffer, and uses all threads anyway

PROGRAM_NAMES = ("inference.json", "inference.pdmodel")  # of Paddle 3, and of Paddle 2


class InferenceProgram:
    """Paddle's predictor for a program, on a GPU or a CPU.

    For other kinds of device, it uses the CPU. On an imitated custom device, Paddle 3.3's predictor gave
    wrong results in some runs.

    Several threads may call it. Their calls run one after the other.

    Args:
        model: file of the program.
        weights: file of its weights.
        threads: number of threads on the CPU.
        with_onednn: True to compute with oneDNN on the CPU.
        in_bfloat16: True to compute in bfloat16 as far as oneDNN can. Input and output stay float32.
        device: device as in ``paddle.get_device()``; None for the current one.

    Raises:
        CheckpointError: the files are not an exported model.
    """

    def __init__(
        self,
        model: Path,
        weights: Path,
        *,
        threads: int,
        with_onednn: bool = True,
        in_bfloat16: bool = False,
        device: str | None = None,
    ) -> None:
        from paddle import inference

        settings = inference.Config(str(model), str(weights))
        settings.disable_glog_info()
        kind, _, number = (device or paddle.get_device()).partition(":")
        self._is_on_gpu = kind == "gpu"
        if self._is_on_gpu:
            settings.enable_use_gpu(_FIRST_POOL_MB, int(number or 0))
        else:
            settings.disable_gpu()
            if with_onednn:
                settings.enable_mkldnn()
            if in_bfloat16:
                settings.enable_mkldnn_bfloat16()
            settings.set_cpu_math_library_num_threads(threads)
        settings.switch_ir_optim(True)  # noqa: FBT003  Paddle's own
        try:
            self._predictor = inference.create_predictor(settings)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{model}: not an exported model: {' '.join(str(error).split())[-200:]}"
            ) from None

    def __call__(self, images: Array) -> Array:
        """Returns the output for a batch. On the CPU, a large batch is computed in several runs."""
        count = max(len(images), 1)
        # The factor 3 is the number of channels.
        images_per_run = (
            count if self._is_on_gpu else max(1, _MAX_PIXELS_PER_RUN * 3 * count // max(images.size, 1))
        )
        parts = [self._run(images[i : i + images_per_run]) for i in range(0, count, images_per_run)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, images: Array) -> Array:
        with _LOCK:
            input_handle = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
            input_handle.reshape(images.shape)
            input_handle.copy_from_cpu(np.ascontiguousarray(images))
            self._predictor.run()
            restore_threads()
            return self._predictor.get_output_handle(self._predictor.get_output_names()[0]).copy_to_cpu()


def program_file(folder: Path) -> Path:
    """Returns the program file of an exported folder.

    It is ``inference.json``, written by Paddle 3, or ``inference.pdmodel``, written by Paddle 2.

    Raises:
        CheckpointError: the folder has neither file.
    """
    for name in PROGRAM_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: neither {' nor '.join(PROGRAM_NAMES)}")


class _TracingWrapper(nn.Layer):
    """A layer around the network, so that tracing does not replace the network's own ``forward``."""

    def __init__(self, network: nn.Layer) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C, H, W] to [N, class_num]."""
        return self.network(images)


def write_program(program: Any, folder: Path) -> Path:
    """Writes a program with the present weights to a private folder.

    Args:
        program: result of ``traced``.
        folder: folder of this process.

    Returns:
        The file of the weights. ``program_file`` gives that of the program.
    """
    paddle.jit.save(program, f"{folder}/inference")
    return folder / "inference.pdiparams"


def traced(layer: nn.Layer, shape: Sequence[int | None]) -> Any:
    """Returns a program of a layer in evaluation mode. The first call or writing it traces the layer.

    Args:
        layer: layer with one argument.
        shape: shape of one input; None for any size.
    """
    wrapper = _TracingWrapper(layer)
    wrapper.eval()
    return to_static(wrapper, paddle.static.InputSpec([None, *shape], "float32", "images"))


class Compiler:
    """Compiles predictors of a network. It traces the network once; predictors copy its current weights."""

    def __init__(self) -> None:
        self._network: nn.Layer | None = None
        self._program: Any = None

    def __call__(self, network: nn.Layer) -> InferenceProgram:
        """Returns a predictor with copies of the network's current weights."""
        if self._network is not network:
            self._network = network
            self._program = traced(network, (input_channels(network), None, None))
        with temporary_folder() as folder:
            weights = write_program(self._program, folder)
            return InferenceProgram(program_file(folder), weights, threads=thread_count(), device="cpu")


class EvaluatedNetwork:
    """A network in evaluation mode, which is compiled if that saves time.

    On the CPU and for enough images, it is compiled for oneDNN, which folds batch norms.

    The first compiled batch is used for a check: some of its images also go through the network itself. If
    the logits differ, or if the network can't be compiled, the network itself is used for all images. Its
    weights must not change meanwhile.

    Args:
        network: network in evaluation mode.
        expected_images: number of images that will be evaluated; 0 if unknown. Then the images are counted.
        compiler: compiler of earlier evaluations of the same network; None for a new one.
    """

    def __init__(self, network: nn.Layer, expected_images: int = 0, compiler: Compiler | None = None) -> None:
        self._network = network
        self._compiler = compiler or Compiler()
        self._expected_images = expected_images
        self._pixel_count = 0  # total of the images so far
        self._predictor: InferenceProgram | None = None
        self._may_compile = is_compilable(network)

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        """Maps images, float32 [N, C, H, W], to logits, float32 [N, class_num]."""
        if self._may_compile and self._is_worth_compiling(images):
            self._may_compile = False  # only one attempt
            self._predictor = self._compile_and_compare(images[:_MAX_COMPARED_IMAGES])
        if self._predictor is not None:
            return paddle.to_tensor(self._predictor(images.numpy()))
        return checked_logits(self._network(images), self._network)

    def _is_worth_compiling(self, images: paddle.Tensor) -> bool:
        pixels_per_image = images.shape[2] * images.shape[3]
        self._pixel_count += images.shape[0] * pixels_per_image
        return max(self._pixel_count, self._expected_images * pixels_per_image) >= _MIN_PIXELS_TO_COMPILE

    def _compile_and_compare(self, images: paddle.Tensor) -> InferenceProgram | None:
        """Returns a predictor; None if it can't be compiled or its logits for these images differ."""
        expected = checked_logits(self._network(images), self._network).numpy()
        if not np.isfinite(expected).all():
            return None
        try:
            predictor = self._compiler(self._network)
            received = predictor(images.numpy())
        except Exception as error:  # from tracing a user's network, the compiler, or a full disk
            logger.debug(f"the network is not compiled: {error}")
            return None
        difference = float(np.abs(received - expected).max())
        if (
            difference <= _TOLERANCE * max(float(np.abs(expected).max()), 1e-3)
            and (received.argmax(1) == expected.argmax(1)).all()
        ):
            return predictor
        logger.warning(
            f"the compiled network's logits differ by {difference:.2e}; "
            "the network is evaluated without compiling"
        )
        return None


def is_compilable(layer: nn.Layer) -> bool:
    """True if a layer computes on the CPU, can be compiled for oneDNN, and is no static graph yet."""
    is_static = "concrete_program" in dir(type(layer.forward))  # reading it would trace the layer
    return paddle.get_device() == "cpu" and _has_onednn() and not is_static


def _has_onednn() -> bool:
    """True if Paddle was built with oneDNN."""
    names = ("is_compiled_with_onednn", "is_compiled_with_mkldnn")  # names in Paddle 3.3, and in older ones
    return any(getattr(paddle.base.core, name, bool)() for name in names)
