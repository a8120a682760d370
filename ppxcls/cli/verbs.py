"""The verbs of ``ppxcls VERB``.

Each verb is one decorated function. ``tools/*.py`` call the same functions.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import ppxcls
from ppxcls import cli
from ppxcls.cli.average import run_average
from ppxcls.cli.launch import run_launcher
from ppxcls.cli.lists import add_table_options, run_lists, table_options
from ppxcls.cli.tune import run_tune
from ppxcls.cli.verify import run_verify
from ppxcls.cli.weights import run_weights
from ppxcls.serving.address import MAX_PORT
from ppxcls.system import environment
from ppxcls.system.atomic_files import write_output
from ppxcls.system.json_text import json_text
from ppxcls.system.output_paths import check_output_file, check_output_folder

Function = Callable[[argparse.ArgumentParser], int | None]


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        summary: line in ``ppxcls --help``.
        description: first paragraph of ``ppxcls VERB --help``.
        examples: example commands. A test runs them in their order, in a folder that contains ``photos/``.
        function: function that adds arguments to a parser, parses them, runs the verb, and returns the exit
            code; None means 0.
    """

    summary: str
    description: str
    examples: Sequence[str]
    function: Function


# Exported files need no config. This one takes the few overrides that are allowed with them.
_CONFIG_OF_EXPORTED_FILES = {"Arch": {"name": "Xception41"}}
VERBS: dict[str, Verb] = {}


def verb(name: str, description: str, *, examples: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Returns a decorator that registers a function as a verb.

    Args:
        name: name of the verb.
        description: first paragraph of ``ppxcls VERB --help``. The first line of the function's docstring is
            the verb's line in ``ppxcls --help``.
        examples: example commands.
    """

    def register(function: Function) -> Function:
        # Python has no docstrings with -OO.
        summary = next(iter((function.__doc__ or description).splitlines()))
        VERBS[name] = Verb(summary, description, examples, function)
        return function

    return register


@verb(
    "fit",
    "Train a classifier on a folder of photographs: lists, settings, training, evaluation and report.",
    examples=[
        "ppxcls fit photos --minutes 1",
        "ppxcls fit photos --weights legacy_xception.safetensors --output output/mine",
    ],
)
def fit_verb(parser: argparse.ArgumentParser) -> None:
    """Train a classifier on a folder of photographs."""
    parser.add_argument(
        "photos",
        metavar="PHOTOS",
        help="a folder with one subfolder per class, or train/, val/ and test/ with such subfolders; or a "
        "table in CSV with a row for each image",
    )
    add_table_options(parser)
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="weights to start from: imagenet, none, a name of 'ppxcls weights', hf-hub:OWNER/REPO, "
        "an address, or a file of PaddleClas, timm, Keras or ppxcls",
    )
    parser.add_argument(
        "--from",
        dest="from_run",
        metavar="RUN",
        help="folder of an earlier run to start from, with its network and its preparation of images; the "
        "classes are those of PHOTOS",
    )
    parser.add_argument(
        "--network", metavar="NAME", help="see 'ppxcls list' (default: the one of the weights, or Xception41)"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="approximate training time in minutes (default: 10)"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the results (default: output/<name of the folder>)"
    )
    parser.add_argument("--device", help="device to train on, such as gpu or cpu (default: the best one)")
    parser.add_argument("--find-lr", action="store_true", help="find the learning rate by a range test")
    parser.add_argument(
        "--find-batch", action="store_true", help="find the batch size by trying larger and larger ones"
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="FRACTION",
        help="fraction of each class that chooses the best stage or epoch, without a folder for it "
        "(default: 0.2 with weights, otherwise 0.1)",
    )
    parser.add_argument(
        "--test-share",
        type=float,
        metavar="FRACTION",
        help="fraction of each class that judges the result, without test/ and val/ (default: 0.2; 0 with "
        "--folds)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        metavar="K",
        help="also train K folds of a cross-validation: the mean of their figures, and a prediction of each "
        "image by a fold that was not trained on it",
    )
    cli.add_override_option(parser)
    cli.add_trust_option(parser)
    arguments = parser.parse_args()
    options = ("weights", "from_run", "network", "minutes", "output", "device", "find_lr", "find_batch")
    folder = ppxcls.fit(
        arguments.photos,
        **{
            name: getattr(arguments, name) for name in (*options, "trust", "val_share", "test_share", "folds")
        },
        **table_options(arguments),
        overrides=arguments.override,
    )
    _print_result(folder, trust=arguments.trust)


def _print_result(folder: Path, *, trust: bool) -> None:
    """Prints how good the result of ``fit`` is, and what a user may need next."""
    from ppxcls.fitting.judging import next_commands, sentence_of

    print()
    if sentence := sentence_of(folder, trust=trust):
        cli.print_line(sentence)
    cli.print_line(f"report: {folder}/report.html")
    print("\nnext:")
    for line in next_commands(folder):
        cli.print_line(line)


@verb(
    "train",
    "Train a classifier from a YAML config.",
    examples=["ppxcls train -c output/photos/train.yaml -o Global.epochs=2"],
)
def train_verb(parser: argparse.ArgumentParser) -> None:
    """Train a classifier from a YAML config."""
    parser.add_argument(
        "--find-lr", action="store_true", help="don't train: try rising learning rates, and suggest one"
    )
    parser.add_argument(
        "--find-batch", action="store_true", help="don't train: find the largest batch that fits"
    )
    arguments = cli.parse_with_config(parser)
    config = cli.read_config(arguments)
    if arguments.find_batch:
        ppxcls.find_batch(arguments.config, arguments.override, trust=arguments.trust)
    if arguments.find_lr:
        ppxcls.find_lr(arguments.config, arguments.override, trust=arguments.trust)
    if arguments.find_batch or arguments.find_lr:
        return
    trainer = ppxcls.build_trainer(config)
    trainer.fit()
    if environment.launched_rank() == 0:
        from ppxcls.reports.page import report_after_training

        report_after_training(trainer.output_dir)


@verb(
    "tune",
    "Search for the best values of keys: each trial is a training, and bad ones are ended early.",
    examples=[
        "ppxcls tune -c output/photos/train.yaml --set 'Optimizer.lr.learning_rate=loguniform(1e-4,1e-1)' "
        "--trials 2 -o Global.epochs=1",
        "ppxcls report output/photos/tune",
    ],
)
def tune_verb(parser: argparse.ArgumentParser) -> None:
    """Search for the best values of keys by trainings."""
    run_tune(parser)


@verb(
    "launch",
    "Run a job in several processes under paddle.distributed.launch, "
    "and restart it from its newest checkpoint if it fails.",
    examples=["ppxcls launch --nproc_per_node 2 train -c output/photos/train.yaml -o Global.epochs=1"],
)
def launch_verb(parser: argparse.ArgumentParser) -> int:
    """Train in several processes, with restarts."""
    return run_launcher(parser)


@verb(
    "eval",
    "Evaluate a run's best_model, or the weights of -o Global.pretrained_model: top-1, top-5, loss.",
    examples=[
        "ppxcls eval -c output/photos/Xception41",
        "ppxcls eval -c output/photos/Xception41 --test",
        "ppxcls eval -c output/photos/Xception41 --calibrate lists/calibration.txt",
    ],
)
def eval_verb(parser: argparse.ArgumentParser) -> None:
    """Evaluate a run."""
    parser.add_argument(
        "--test",
        action="store_true",
        help="evaluate on the images of DataLoader.Test, which neither trained nor chose, and count it",
    )
    cli.add_tta_option(parser)
    parser.add_argument(
        "--calibrate",
        metavar="LIST",
        help="instead of an evaluation, fit the temperature of the scores on the images of this list, which "
        "were not trained on and, at best, did not choose the weights, and write calibration.json",
    )
    arguments = cli.parse_with_config(parser)  # before ppxcls.evaluate, which imports Paddle
    if arguments.calibrate is None:
        ppxcls.evaluate(cli.read_config(arguments), test=arguments.test, tta=arguments.tta)
        return
    if arguments.test or arguments.tta:
        parser.error("argument --calibrate: not allowed with --test or --tta")
    ppxcls.calibrate(cli.read_config(arguments), arguments.calibrate)


@verb(
    "average",
    "Average the weights of checkpoints epoch_N, renew the statistics of the batch norms, and evaluate.",
    examples=["ppxcls average output/Xception41 --last 5", "ppxcls average output/Xception41 --greedy"],
)
def average_verb(parser: argparse.ArgumentParser) -> None:
    """Average the weights of checkpoints."""
    run_average(parser)


@verb(
    "verify",
    "Repeat steps of a finished run on this machine, and compare losses, metrics and weights bit for bit. "
    "The exit code is 0 if they are the same, 1 if they differ, and 2 if they can't be compared.",
    examples=["ppxcls verify output/photos/Xception41 --steps 5"],
)
def verify_verb(parser: argparse.ArgumentParser) -> int:
    """Repeat steps of a run, and compare the bits."""
    return run_verify(parser)


@verb(
    "infer",
    "Predict the classes of images.",
    examples=[
        "ppxcls infer -c output/photos/Xception41 photos --format csv",
        "ppxcls infer --exported inference photos",
        "ppxcls infer -c output/photos/Xception41 photos --unknown 0.05 --coverage 0.95",
    ],
)
def infer_verb(parser: argparse.ArgumentParser) -> int:
    """Predict the classes of images."""
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="files, folders or quoted patterns (default: Infer.infer_imgs)",
    )
    parser.add_argument(
        "--format",
        choices=["paddleclas", "csv", "jsonl"],
        default="paddleclas",
        help="output format (default: paddleclas)",
    )
    parser.add_argument(
        "--exported", metavar="DIR", help="an exported folder, or its .onnx file, to run instead; needs no -c"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="file for the predictions (default: standard output)"
    )
    parser.add_argument(
        "--features",
        metavar="FILE.npy",
        help="also write the input of the classifier for each image, and the names of the images to FILE.csv",
    )
    cli.add_tta_option(parser)
    cli.add_limit_options(parser)
    arguments = cli.parse_with_config(parser, needs_config=lambda namespace: not namespace.exported)
    config = cli.read_config(arguments, sys.stderr) if arguments.config else None
    if not arguments.config and arguments.override:
        config = ppxcls.load_config(_CONFIG_OF_EXPORTED_FILES, arguments.override)
    if arguments.output:
        check_output_file(arguments.output)
    environment.import_paddle()
    from ppxcls.deploy.build import print_predictions
    from ppxcls.deploy.feature_files import names_file
    from ppxcls.deploy.output import Output

    if arguments.features:
        check_output_file(str(names_file(Path(arguments.features))))
        check_output_file(arguments.features)
    failures = print_predictions(
        config,
        arguments.images,
        output=Output(arguments.format, arguments.output, arguments.features),
        exported=arguments.exported,
        tta=arguments.tta,
        unknown_share=arguments.unknown_share,
        coverage=arguments.coverage,
        trust=arguments.trust,
    )
    return cli.EXIT_ERROR if failures else 0


@verb(
    "export",
    "Write files for Paddle Inference and ONNX, and compare each with the network on images.",
    examples=["ppxcls export -c output/photos/Xception41 --format paddle"],
)
def export_verb(parser: argparse.ArgumentParser) -> None:
    """Export a run for Paddle Inference and ONNX."""
    parser.add_argument(
        "--format",
        choices=["paddle", "onnx", "both"],
        default="both",
        help="formats to write (default: both)",
    )
    parser.add_argument("--logits", action="store_true", help="output logits instead of probabilities")
    parser.add_argument(
        "--float-input",
        action="store_true",
        help="input normalised float32 [N, C, H, W] instead of uint8 [N, H, W, C]",
    )
    parser.add_argument("--fold", action="store_true", help="fold batch norms into convolutions")
    parser.add_argument(
        "--int8", metavar="LIST", help="also write an 8-bit ONNX file, calibrated on this list or pack"
    )
    arguments = cli.parse_with_config(parser)
    config = cli.read_config(arguments)
    environment.import_paddle()
    from ppxcls.deploy.build_export import export_folder

    check_output_folder(export_folder(config))
    ppxcls.export(
        config,
        ["paddle", "onnx"] if arguments.format == "both" else [arguments.format],
        softmax=not arguments.logits,
        preprocess=not arguments.float_input,
        fold=arguments.fold,
        int8=arguments.int8,
    )
    cli.print_line(f"written to {export_folder(config)}")


@verb(
    "report",
    "Write a run's report.html again, or a page that compares several runs.",
    examples=["ppxcls report output/photos/Xception41"],
)
def report_verb(parser: argparse.ArgumentParser) -> None:
    """Write a page about a run, or about several."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file for the comparison of several runs (default: comparison.html); one run has report.html",
    )
    cli.add_trust_option(parser)
    arguments = parser.parse_args()
    if len(arguments.runs) > 1:
        check_output_file(arguments.output or "comparison.html")
    cli.print_line(str(ppxcls.report(arguments.runs, arguments.output, trust=arguments.trust)))


@verb(
    "serve",
    "Serve a run or an exported model: POST images to /predict; /openapi.json, /healthz, /metrics, and a "
    "page at /.",
    examples=[
        "ppxcls serve inference --port 8000",
        "curl -F file=@image.jpg http://127.0.0.1:8000/predict",
    ],
)
def serve_verb(parser: argparse.ArgumentParser) -> None:
    """Serve a run or an exported model over HTTP."""
    parser.add_argument("model", metavar="MODEL", help="folder of an export or of a run, or an .onnx file")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; there are no passwords (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="port to listen on; 0 takes a free one and prints it (default: 8000)",
    )
    parser.add_argument(
        "--batch", type=int, default=16, help="largest number of images in a batch (default: 16)"
    )
    parser.add_argument(
        "--queue",
        type=int,
        default=128,
        help="number of images that may wait; others are answered with 503 (default: 128)",
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin, such as https://example.org, use the server; repeatable; * for "
        "all (default: none)",
    )
    cli.add_limit_options(parser)
    cli.add_trust_option(parser)
    _add_access_options(parser)
    arguments = parser.parse_args()
    ppxcls.serve(
        arguments.model,
        host=arguments.host,
        port=arguments.port,
        batch=arguments.batch,
        queue=arguments.queue,
        cors=arguments.cors,
        unknown_share=arguments.unknown_share,
        coverage=arguments.coverage,
        trust=arguments.trust,
        allowed_hosts=arguments.allowed_host,
        proxies=arguments.proxy,
        connections=arguments.connections,
        memory=arguments.memory,
        pixels=arguments.pixels,
        decode_seconds=arguments.decode_seconds,
    )


def _add_access_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that bound what clients may do."""
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer requests for this host name, too; repeatable; * for all (default: localhost and the "
        "address that the server listens on)",
    )
    parser.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address of a proxy that stands for many clients and may use all connections and memory; "
        "others may use half; repeatable (default: none)",
    )
    for option, kind, default, text in (
        ("--connections", int, 512, "largest number of connections"),
        ("--memory", int, 256, "MiB that all requests in progress may take"),
        ("--pixels", float, 51, "largest number of pixels of an image, in millions"),
        ("--decode-seconds", float, 10, "longest time to decode an image"),
    ):
        parser.add_argument(option, type=kind, default=default, help=f"{text} (default: {default})")


def _port(text: str) -> int:
    """Returns the number of a port that is given as text."""
    if text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= MAX_PORT:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a port from 0 to {MAX_PORT}, received {text!r}")


@verb(
    "check",
    "Decode every listed file, and look for copies, wrong labels and leaks.",
    examples=["ppxcls check -c output/photos/Xception41"],
)
def check_verb(parser: argparse.ArgumentParser) -> int:
    """Check the data sets of a YAML config."""
    parser.add_argument("--json", metavar="FILE", help="file for the report as JSON")
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="images of one group must be in one list: a regular expression with one pair of parentheses "
        "that finds the group in an image's path (default: groups.csv beside the lists, if there is one)",
    )
    arguments = cli.parse_with_config(parser)
    config = cli.read_config(arguments)
    if arguments.json:
        check_output_file(arguments.json)
    data_report = ppxcls.check_data(config, group=arguments.group)
    print(data_report)
    if arguments.json:
        text = json_text(data_report.as_dict(), indent=1)
        write_output(Path(arguments.json), text + "\n")
    return cli.EXIT_ERROR if data_report.errors else 0


@verb(
    "lists",
    "Write train_list.txt, val_list.txt and class_names.txt for a folder with one subfolder per class, or "
    "for a table in CSV.",
    examples=["ppxcls lists photos -o lists", "ppxcls lists photos -o lists_5 --folds 5"],
)
def lists_verb(parser: argparse.ArgumentParser) -> None:
    """Write list files for folders of images."""
    run_lists(parser)


@verb(
    "pack",
    "Pack a list's files into a few large files, which are read and decoded faster. No pixel changes.",
    examples=[
        "ppxcls pack lists/train_list.txt --image-root photos -o packed",
        "ppxcls pack lists/train_list.txt --image-root photos --verify packed",
        "ppxcls pack --unpack packed -o unpacked",
    ],
)
def pack_verb(parser: argparse.ArgumentParser) -> None:
    """Pack a list's files into a few large files."""
    parser.add_argument("list", nargs="?", metavar="LIST", help="list file with lines of 'path label'")
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="folder of the packed data set; interrupted work is continued"
    )
    parser.add_argument(
        "--image-root",
        metavar="DIR",
        help="folder to which the list's paths are relative (default: the list's)",
    )
    parser.add_argument("--delimiter", default=" ", help="text between path and label (default: a space)")
    parser.add_argument(
        "--samples-per-shard",
        type=int,
        default=8192,
        metavar="N",
        help="images in one packed file (default: 8192)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="reduce larger images to this shorter side, as JPEGs of quality 90",
    )
    parser.add_argument(
        "--quality", type=int, help="write every image as a JPEG of this quality; this changes the pixels"
    )
    parser.add_argument("--threads", type=int, help="number of threads (default: one per core)")
    parser.add_argument(
        "--verify", metavar="PACK", help="compare checksums and, with LIST, every image with its original"
    )
    parser.add_argument("--unpack", metavar="PACK", help="write the files of a packed data set to --output")
    arguments = parser.parse_args()
    if (arguments.unpack and (arguments.verify or arguments.list)) or (arguments.verify and arguments.output):
        parser.error("expected one of packing, --verify and --unpack")
    if arguments.output:
        check_output_folder(arguments.output)
    with tqdm(unit="image", disable=None, leave=False) as bar:
        cli.print_line(_run_pack(parser, arguments, bar.update))


def _run_pack(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, progress: Callable[[int], object]
) -> str:
    """Packs, verifies or unpacks a data set, and returns the line to print."""
    if arguments.unpack and arguments.output:
        count = ppxcls.unpack(arguments.unpack, arguments.output, progress=progress)
        return f"{count:,} files written to {arguments.output}"
    if arguments.verify:
        pack_facts = ppxcls.verify_pack(
            arguments.verify,
            arguments.list,
            image_root=arguments.image_root,
            threads=arguments.threads,
            progress=progress,
        )
        outcome = "every image equals its original" if arguments.list else "the checksums are right"
        return f"{pack_facts}; {outcome}"
    if arguments.list and arguments.output:
        pack_facts = ppxcls.pack(
            arguments.list,
            arguments.image_root,
            output=arguments.output,
            samples_per_shard=arguments.samples_per_shard,
            short_side=arguments.short_side,
            quality=arguments.quality,
            delimiter=arguments.delimiter,
            threads=arguments.threads,
            progress=progress,
        )
        return str(pack_facts)
    return parser.error("expected LIST and --output, or --verify PACK, or --unpack PACK and --output")


@verb(
    "convert",
    "Convert weights of timm, Keras or this package to .pdparams or .safetensors.",
    examples=[
        "ppxcls convert legacy_xception.safetensors --model legacy_xception -o legacy_xception.pdparams"
    ],
)
def convert_verb(parser: argparse.ArgumentParser) -> None:
    """Convert weights."""
    parser.add_argument(
        "source",
        help="weights file: .safetensors, .pth, .weights.h5, .keras or .pdparams; or a published name",
    )
    parser.add_argument("--model", required=True, help="name of the network, such as xception65")
    parser.add_argument("--class-num", type=int, default=1000, help="number of classes (default: 1000)")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="file to write: .pdparams or .safetensors"
    )
    arguments = parser.parse_args()
    check_output_file(arguments.output)
    count = ppxcls.convert_weights(arguments.source, arguments.model, arguments.output, arguments.class_num)
    cli.print_line(
        f"{count} tensors, with the keys and shapes of {arguments.model}, written to {arguments.output}"
    )


@verb(
    "doctor",
    "Check versions, devices, a training step on each, image libraries, threads and disk.",
    examples=["ppxcls doctor"],
)
def doctor_verb(parser: argparse.ArgumentParser) -> int:
    """Check the installation."""
    from ppxcls.cli.doctor import run_checks

    parser.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder on the disk that runs will write to (default: the current folder)",
    )
    arguments = parser.parse_args()
    is_ok = True
    for finding in run_checks(arguments.output):
        cli.print_line(str(finding))
        is_ok &= finding.is_ok
    print("all checks passed" if is_ok else "some checks failed: see the lines that begin with BAD")
    return 0 if is_ok else cli.EXIT_ERROR


@verb("list", "Print the names of all networks.", examples=["ppxcls list"])
def list_verb(parser: argparse.ArgumentParser) -> None:
    """Print the names of all networks."""
    parser.parse_args()
    print("\n".join(ppxcls.list_models()))


@verb(
    "weights",
    "List the published weights of the networks, or fetch some and print their path.",
    examples=["ppxcls weights", "ppxcls weights --json"],
)
def weights_verb(parser: argparse.ArgumentParser) -> None:
    """List published weights, or fetch them."""
    run_weights(parser)


def run_verb(name: str) -> None:
    """Runs a verb with the command-line arguments of this process. ``tools/*.py`` call it."""
    entry = VERBS[name]
    parser = cli.parser_for(entry.description, entry.examples)
    cli.run_command(functools.partial(entry.function, parser))


def main() -> None:
    """Runs ``ppxcls VERB ...`` or ``python -m ppxcls VERB ...``."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in VERBS:
        sys.argv = [f"ppxcls {name}", *sys.argv[2:]]
        run_verb(name)
        return
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:{width}}{entry.summary}" for name, entry in VERBS.items()]
    usage = "usage: ppxcls VERB ...\n\n" + "\n".join(lines) + "\n\n'ppxcls VERB --help' has examples."
    if name in ("-h", "--help", "--version"):
        cli.run_command(lambda: print(ppxcls.__version__ if name == "--version" else usage))
    else:
        print(f"{usage}\n", file=sys.stderr)
        cli.print_line(f"ppxcls: there is no verb {name!r}", sys.stderr)
        sys.exit(cli.EXIT_USAGE)
