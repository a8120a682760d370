"""What the tools and ``ppxcls VERB`` do: each verb reads the command line and calls ppxcls."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

import ppxcls
from ppxcls import cli
from ppxcls.system.paths import printable

# The examples of --help, which a test runs in this order in a folder with ``photos/`` in it.
EXAMPLES = {
    "lists": ["ppxcls lists photos -o lists"],
    "pack": [
        "ppxcls pack lists/train_list.txt --image-root photos -o packed",
        "ppxcls pack lists/train_list.txt --image-root photos --verify packed",
        "ppxcls pack --unpack packed -o unpacked",
    ],
    "fit": ["ppxcls fit photos --minutes 1", "ppxcls fit photos --weights legacy_xception.safetensors --output output/mine"],
    "train": ["ppxcls train -c output/photos/train.yaml -o Global.epochs=2"],
    "eval": ["ppxcls eval -c output/photos/Xception41"],
    "infer": ["ppxcls infer -c output/photos/Xception41 photos --format csv", "ppxcls infer --exported inference photos"],
    "export": ["ppxcls export -c output/photos/Xception41 --format paddle"],
    "check": ["ppxcls check -c output/photos/Xception41"],
    "report": ["ppxcls report output/photos/Xception41"],
    "doctor": ["ppxcls doctor"],
    "list": ["ppxcls list"],
}


def fit() -> None:
    """A classifier from a folder of photographs."""
    parser = cli.parser_for(
        "Train a classifier on a folder of photographs: lists, settings, training, evaluation and report.", EXAMPLES["fit"]
    )
    parser.add_argument("photos", metavar="PHOTOS", help="a folder for each class in it, or train/ and val/ with such folders")
    parser.add_argument("--weights", metavar="FILE", help="to start from: of PaddleClas, timm, Keras or ppxcls")
    parser.add_argument("--network", metavar="NAME", help="see 'ppxcls list'; default: that of the weights, or else Xception41")
    parser.add_argument("--minutes", type=float, default=10.0, help="that the training may take, about (default: 10)")
    parser.add_argument("--output", metavar="DIR", help="default: output/<name of the folder>")
    parser.add_argument("--device", help="default: the best one here")
    parser.add_argument("--find-lr", action="store_true", help="find the learning rate by a range test")
    parser.add_argument("--find-batch", action="store_true", help="find the batch size by trying larger and larger ones")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY.KEY=VALUE", help="change a key; repeatable")
    given = parser.parse_args()
    names = ("photos", "weights", "network", "minutes", "output", "device", "find_lr", "find_batch")
    folder = ppxcls.fit(**{name: getattr(given, name) for name in names}, overrides=given.override)
    from ppxcls.fitting.folder import next_commands

    print(f"\nreport: {printable(str(folder))}/report.html\n\nnext:")
    for line in next_commands(folder):
        print(printable(line))


def train() -> None:
    """Train as a YAML says."""
    arguments = cli.parse_arguments(
        "Train a classifier as a YAML says.",
        {
            "--find-lr": {"action": "store_true", "help": "don't train: raise the rate step by step, and suggest one"},
            "--find-batch": {"action": "store_true", "help": "don't train: find the largest batch that fits"},
        },
        examples=EXAMPLES["train"],
    )
    config = cli.load_config(arguments)
    if arguments.find_lr or arguments.find_batch:
        if arguments.find_batch:
            ppxcls.find_batch(arguments.config, arguments.override)
        if arguments.find_lr:
            ppxcls.find_lr(arguments.config, arguments.override)
        return
    trainer = ppxcls.build_trainer(config)
    trainer.fit()
    if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
        from ppxcls.reports.page import report_after_training

        report_after_training(trainer.output_dir)


def evaluate() -> None:
    """Evaluate a run."""
    arguments = cli.parse_arguments(
        "Evaluate a run's best_model, or the weights of -o Global.pretrained_model: top-1, top-5, loss.", examples=EXAMPLES["eval"]
    )
    ppxcls.evaluate(cli.load_config(arguments))


def infer() -> int:
    """Predict the classes of images."""
    arguments = cli.parse_arguments(
        "Predict the classes of images.",
        {
            "images": {"nargs": "*", "metavar": "IMAGES", "help": "files, folders or quoted patterns; default: Infer.infer_imgs"},
            "--format": {"choices": ["paddleclas", "csv", "jsonl"], "default": "paddleclas", "help": "of the output"},
            "--exported": {"metavar": "DIR", "help": "run what export_model.py wrote: the folder, or its .onnx file; needs no -c"},
            "--output": {"metavar": "FILE", "help": "write there instead of to standard output"},
        },
        examples=EXAMPLES["infer"],
        needs_config=lambda given: not given.exported,
    )
    config = cli.load_config(arguments, sys.stderr) if arguments.config else None
    failed = ppxcls.infer(config, arguments.format, arguments.exported, arguments.output, arguments.images)
    return cli.EXIT_ERROR if failed else 0


def export() -> None:
    """Export a run for Paddle Inference and ONNX."""
    arguments = cli.parse_arguments(
        "Write files of Paddle Inference and ONNX, and compare each with the network on images.",
        {
            "--format": {"choices": ["paddle", "onnx", "both"], "default": "both"},
            "--logits": {"action": "store_true", "help": "give logits instead of probabilities"},
            "--float-input": {"action": "store_true", "help": "take normalised float32 [N, 3, H, W] instead of uint8 [N, H, W, 3]"},
            "--fold": {"action": "store_true", "help": "fold batch norms into convolutions"},
            "--int8": {"metavar": "LIST", "help": "also write an 8-bit ONNX file, calibrated on this list or pack"},
        },
        examples=EXAMPLES["export"],
    )
    config = cli.load_config(arguments)
    formats = ["paddle", "onnx"] if arguments.format == "both" else [arguments.format]
    ppxcls.export(config, formats, not arguments.logits, not arguments.float_input, arguments.fold, arguments.int8)
    from ppxcls.deploy.build import export_folder

    print(f"written to {export_folder(config)}")


def check() -> int:
    """Check the data of a YAML."""
    arguments = cli.parse_arguments(
        "Decode every listed file and look for copies, wrong labels and leaks.",
        {"--json": {"metavar": "FILE", "help": "write the report as JSON too"}},
        examples=EXAMPLES["check"],
    )
    report = ppxcls.check_data(cli.load_config(arguments))
    print(report)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return cli.EXIT_ERROR if report.errors else 0


def report() -> None:
    """A page about a run, or about several."""
    parser = cli.parser_for("Write report.html of a run again, or a page that compares several runs.", EXAMPLES["report"])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", metavar="FILE", default="comparison.html", help="of a comparison (default: comparison.html)")
    given = parser.parse_args()
    print(printable(str(ppxcls.report(given.runs, given.output))))


def serve() -> None:
    """Serve a run or an exported model over HTTP."""
    parser = cli.parser_for(
        "Serve a run or an exported model: POST an image file to /predict; /healthz, /metrics, and a page at /.",
        ["ppxcls serve inference --port 8000", "curl --data-binary @image.jpg http://127.0.0.1:8000/predict"],
    )
    parser.add_argument("model", metavar="MODEL", help="folder of an export or of a run, or an .onnx file")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on; there are no passwords (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16, help="most images in a batch (default: 16)")
    parser.add_argument("--queue", type=int, default=128, help="images that may wait; more are answered with 503 (default: 128)")
    given = parser.parse_args()
    ppxcls.serve(given.model, given.host, given.port, given.batch, given.queue)


def lists() -> None:
    """List files from folders of images."""
    parser = cli.parser_for("One folder a class to train_list.txt, val_list.txt and class_names.txt.", EXAMPLES["lists"])
    parser.add_argument(
        "folder", help="its folders are the classes; or train/, val/ and test/ with such folders; or a flat val/ with --labels"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where the lists go; the images stay where they are")
    parser.add_argument("--val-share", type=float, default=0.2, help="of each class for evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", metavar="FILE", help="of a flat folder: a label for each file in order of names, a line each")
    given = parser.parse_args()
    print(ppxcls.make_lists(given.folder, given.output, given.val_share, given.seed, given.labels))


def pack() -> None:
    """Files of a list to a few large ones."""
    parser = cli.parser_for(
        "Pack the files of a list, so that they are read and decoded faster, without a change of a pixel.", EXAMPLES["pack"]
    )
    parser.add_argument("list", nargs="?", metavar="LIST", help="lines of 'path label'")
    parser.add_argument("-o", "--output", metavar="DIR", help="the packed data set; work that was interrupted goes on there")
    parser.add_argument("--image-root", metavar="DIR", help="of the list's paths (default: the list's folder)")
    parser.add_argument("--delimiter", default=" ", help="between path and label (default: a blank)")
    parser.add_argument("--samples-per-shard", type=int, default=8192, metavar="N", help="in a file (default: 8192)")
    parser.add_argument("--short-side", type=int, metavar="PIXELS", help="reduce larger images to it, as JPEGs (quality: 90)")
    parser.add_argument("--quality", type=int, help="write every image as a JPEG of this quality; this changes the pixels")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--verify", metavar="PACK", help="compare checksums and, with LIST, every image with its original")
    parser.add_argument("--unpack", metavar="PACK", help="write its files to --output")
    given = parser.parse_args()
    if (given.unpack and (given.verify or given.list)) or (given.verify and given.output):
        parser.error("expected one of packing, --verify and --unpack")
    with tqdm(unit="image", disable=None, leave=False) as bar:
        if given.unpack and given.output:
            result: object = f"{ppxcls.unpack(given.unpack, given.output, bar.update):,} files written to {given.output}"
        elif given.verify:
            found = ppxcls.verify_pack(given.verify, given.list, given.image_root, given.threads, bar.update)
            result = f"{found}; " + ("every image equals its original" if given.list else "the checksums are right")
        elif given.list and given.output:
            sizes = given.samples_per_shard, given.short_side, given.quality
            result = ppxcls.pack(given.list, given.image_root, given.output, *sizes, given.delimiter, given.threads, bar.update)
        else:
            parser.error("expected LIST and --output, or --verify PACK, or --unpack PACK and --output")
    print(printable(str(result)))


def convert() -> None:
    """Convert weights."""
    parser = cli.parser_for("Weights of timm, Keras or this package to .pdparams or .safetensors.")
    parser.add_argument("source", help=".safetensors, .pth, .weights.h5, .keras or .pdparams")
    parser.add_argument("--model", required=True, help="the network, such as xception65")
    parser.add_argument("--class-num", type=int, default=1000)
    parser.add_argument("-o", "--output", required=True, help=".pdparams or .safetensors")
    given = parser.parse_args()
    count = ppxcls.convert_weights(given.source, given.model, given.output, given.class_num)
    print(f"{count} tensors, every key and shape as {given.model} has them, written to {given.output}")


def doctor() -> int:
    """Look over the installation."""
    from ppxcls.cli.doctor import look

    parser = cli.parser_for("Versions, devices, a training step on each, image libraries, threads, disk.", EXAMPLES["doctor"])
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="on the disk that runs will write to")
    given = parser.parse_args()
    is_ok = True
    for finding in look(given.output):
        print(printable(str(finding)), flush=True)
        is_ok &= finding.is_ok
    print("all is well" if is_ok else "something is wrong: see the lines that begin with BAD")
    return 0 if is_ok else cli.EXIT_ERROR


def list_() -> None:
    """The networks."""
    cli.parser_for("Names of all networks.", EXAMPLES["list"]).parse_args()
    print("\n".join(ppxcls.list_models()))


VERBS: Mapping[str, Callable[[], int | None]] = {
    "fit": fit,
    "train": train,
    "eval": evaluate,
    "infer": infer,
    "export": export,
    "report": report,
    "serve": serve,
    "check": check,
    "lists": lists,
    "pack": pack,
    "convert": convert,
    "doctor": doctor,
    "list": list_,
}


def main() -> None:
    """``ppxcls VERB ...``, and ``python -m ppxcls VERB ...``."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        sys.argv = [f"ppxcls {verb}", *sys.argv[2:]]
        cli.run(VERBS[verb])
        return
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:{width}}{(function.__doc__ or '').splitlines()[0]}" for name, function in VERBS.items()]
    usage = "usage: ppxcls VERB ...\n\n" + "\n".join(lines) + "\n\n'ppxcls VERB --help' has examples."
    if verb in ("-h", "--help"):
        print(usage)
    elif verb == "--version":
        print(ppxcls.__version__)
    else:
        print(f"{usage}\n\nppxcls: there is no verb {printable(verb)!r}", file=sys.stderr)
        sys.exit(cli.EXIT_USAGE)
