"""The common parts of all commands: arguments for a config, and errors as one line with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from ppxcls.cli.valid_variables import EXIT_USAGE as EXIT_USAGE
from ppxcls.system import environment, watchdog
from ppxcls.system.job_secret import JobError
from ppxcls.system.logs import logger
from ppxcls.system.paths import one_line
from ppxcls.system.signals import EXIT_PREEMPTED, Preempted

_FULL_DISK_ERRORS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
EXIT_ERROR, EXIT_INTERRUPTED = 1, 130
_MEMORY_ADVICE = (
    "use a smaller DataLoader.Train.sampler.batch_size (ppxcls train --find-batch finds the largest), "
    "AMP, or Arch.recompute"
)


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, one_line(f"{self.prog}: error: {message}; see {self.prog} --help") + "\n")

    def print_help(self, file: Any = None) -> None:
        """Prints the help. argparse's own function hides that the output can't be written."""
        print(self.format_help(), end="", file=file)


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Prints a text with names from outside as one printable line of bounded length.

    Args:
        text: text to print.
        stream: stream to print to; None for standard output.
    """
    print(one_line(text), file=stream or sys.stdout, flush=True)


def parser_for(description: str, examples: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Returns a parser of command-line arguments. Its ``--help`` text ends with the examples."""
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
    return _Parser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_override_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option ``-o KEY.KEY=VALUE``, which may be repeated."""
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY.KEY=VALUE",
        help="change a key of the YAML; repeatable; list items by index or name",
    )


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option ``--trust``."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run code that came with the files: plugins, and programs of other exporters",
    )


def add_tta_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option ``--tta``."""
    parser.add_argument(
        "--tta",
        metavar="VIEWS",
        help="average the probabilities of several views of each image: flip (its mirror image), crops (the "
        "four corners beside the centre), or flip,crops",
    )


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options ``--unknown`` and ``--coverage``."""
    parser.add_argument(
        "--unknown",
        dest="unknown_share",
        type=float,
        metavar="SHARE",
        help="answer that an image is unknown; at most this share of known images is turned away, such as "
        "0.05; the model needs a calibration",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="SHARE",
        help="answer with a set of classes, too, which contains the true class of at least this share of "
        "known images, such as 0.95; the model needs a calibration",
    )


def parse_with_config(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    *,
    needs_config: Callable[[argparse.Namespace], bool] = lambda _: True,
) -> argparse.Namespace:
    """Adds ``config``, ``override`` (a list), ``trust`` and ``print_config``, and parses a command line.

    Args:
        parser: parser with the other arguments of the command.
        argv: words of the command line; None for those of this process.
        needs_config: function of the parsed arguments that returns True if ``-c`` is required.
    """
    parser.add_argument("-c", "--config", metavar="FILE", help="the YAML, or the folder of a run")
    add_override_option(parser)
    add_trust_option(parser)
    parser.add_argument("-p", "--print-config", action="store_true", help="print the resolved config first")
    arguments = parser.parse_args(argv)
    if arguments.config is not None:
        arguments.config = _config_of_this_repository(arguments.config)
    elif needs_config(arguments):
        parser.error("the following arguments are required: -c/--config")
    return arguments


def read_config(arguments: argparse.Namespace, stream: TextIO | None = None) -> Any:
    """Loads the config of the arguments, and prints it if ``--print-config`` is set.

    Args:
        arguments: result of ``parse_with_config``.
        stream: stream to print to; None for standard output.
    """
    from ppxcls import load_config as load

    config = load(arguments.config, arguments.override, trust=arguments.trust)
    if arguments.print_config:
        print(config.to_yaml(), file=stream or sys.stdout)
    return config


def _config_of_this_repository(path: str) -> str:
    """Returns this repository's file for a config path of PaddleClas.

    Such a path is ``ppcls/configs/ImageNet/Xception/Xception41.yaml``. The path is returned unchanged if it
    is any other path, if its file exists, or if this repository has no file of this name.
    """
    file = Path(__file__).resolve().parents[2] / "configs" / Path(path).name
    if "ppcls/configs/" not in Path(path).as_posix() or os.path.exists(path) or not file.is_file():
        return path
    if environment.launched_rank() == 0:
        print_line(f"{path} does not exist; {file} is used", sys.stderr)
    return str(file)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command, and exits unless its exit code is 0.

    An expected error is printed as one line on standard error. The exit code is 2 for an invalid config, 1
    for any other expected error, 75 if a signal stopped a run after it had saved, and 130 for Ctrl-C. An
    unexpected error keeps its traceback. One of several ranks then exits without the interpreter's clean-up.

    Args:
        main: function that returns the exit code; None means 0.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe may not use UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = cast(Any, _warning_line)
    os.environ["MPLBACKEND"] = "agg"  # matplotlib does not start with an unknown one; pictures go to memory
    watchdog.arm()
    try:
        code = _with_flushed_output(main)  # parses the arguments first: --help does not wait for Paddle
    except KeyboardInterrupt:
        _exit("interrupted; all saved checkpoints are complete", EXIT_INTERRUPTED)
    except environment.PaddleError as error:
        _exit(str(error), EXIT_ERROR)
    except BrokenPipeError:  # the program that reads the output, such as head, has ended
        os._exit(EXIT_ERROR)
    except Exception as error:
        message, code = _message_and_code(error)
        if message is not None:
            _exit(message, code)
        if environment.launched_world_size() == 1:
            raise
        # Not by the interpreter's exit, because the destructors of a collective library may wait there for
        # the other ranks, which wait for this one.
        traceback.print_exc()
        _exit(f"error: an unexpected {type(error).__name__}; its traceback is above", code)
    if code:
        sys.exit(code)


def _with_flushed_output(main: Callable[[], int | None]) -> int | None:
    """Calls a function and flushes its output, also if it exits, as ``--help`` does.

    Raises:
        OSError: the output can't be written, for example because the disk is full.
    """
    try:
        return main()
    except SystemExit as request:
        if request.code:
            raise
        return 0
    finally:
        sys.stdout.flush()


def _message_and_code(error: Exception) -> tuple[str | None, int]:
    """Returns the message and the exit code for an error that a user can cause; None for any other error."""
    # Imported here because they need numpy: the doctor checks installations that may lack it.
    from ppxcls.checkpoints.files import CheckpointError
    from ppxcls.checkpoints.run_folder import RunFolderError
    from ppxcls.config.checks import ConfigError
    from ppxcls.data.errors import DataError

    if isinstance(error, ConfigError):
        return f"config error: {error}", EXIT_USAGE
    if isinstance(error, Preempted):
        return str(error), EXIT_PREEMPTED
    if isinstance(error, DataError | CheckpointError | RunFolderError | JobError):
        return f"error: {error}", EXIT_ERROR
    # Paddle raises OSError without a number for its internal errors.
    if isinstance(error, OSError) and error.errno is not None:
        # Errors of files have their names.
        is_output = error.filename is None and error.errno in _FULL_DISK_ERRORS
        return f"error: {error}{': standard output' if is_output else ''}", EXIT_ERROR
    if "paddle" in sys.modules:
        from ppxcls import TrainingError
        from ppxcls.system.devices import is_out_of_memory

        if isinstance(error, TrainingError):
            return f"error: {error}", EXIT_ERROR
        if is_out_of_memory(error):
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in lines if "memory" in line.lower()), lines[0] if lines else "")
            return f"error: out of memory: {reason[:300]}; {_MEMORY_ADVICE}", EXIT_ERROR
    return None, EXIT_ERROR


def _warning_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Logs a library's warning as one line."""
    logger.warning(f"{category.__name__}: {' '.join(str(message).split())}")


def _exit(message: str, code: int) -> None:
    rank = f"rank {environment.launched_rank()}: " if environment.launched_world_size() > 1 else ""
    with contextlib.suppress(OSError):
        print_line(f"{rank}{message}", sys.stderr)
        sys.stdout.flush()
    if code == EXIT_USAGE and environment.launched_world_size() > 1:
        from ppxcls.system.supervisor import record_refusal

        record_refusal()
    # Not sys.exit: another rank may wait in a collective, and threads may be in the middle of an image.
    os._exit(code)
