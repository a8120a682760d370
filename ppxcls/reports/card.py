"""The model card of a run, with the metadata fields of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from ppxcls.build.choices import data_name
from ppxcls.reports import figures
from ppxcls.reports.ending import epochs_text
from ppxcls.reports.record import Record
from ppxcls.system.paths import printable

MARK = "# Written by ppxcls; without this line, it is not written again."


def model_card(record: Record) -> str:
    """Returns the text of ``README.md``.

    It begins with metadata as YAML. The text describes the model, its training and its use.
    """
    name, manifest = record.config.Arch.name, record.manifest
    metadata: dict[str, Any] = {
        "library_name": "paddlepaddle",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "xception", "ppxcls"],
    }
    lines = [
        f"# {name}",
        "",
        f"An image classifier with {len(record.names):,} classes, trained with ppxcls.",
        "",
    ]
    samples = record.shown_samples
    if samples is not None:
        proportions = {
            f"top{k}": share for k, share in figures.topk_proportions(samples, len(record.names)).items()
        }
        metadata["metrics"] = ["accuracy"]
        results = [
            {"type": "accuracy", "name": key, "value": round(share.value, 5)}
            for key, share in proportions.items()
        ]
        data = {"type": "imagefolder", "name": _eval_list(record)}
        task = {"type": "image-classification"}
        metadata["model-index"] = [
            {"name": name, "results": [{"task": task, "dataset": data, "metrics": results}]}
        ]
        lines += [
            "## Evaluation",
            "",
            f"On {len(samples):,} images of `{_eval_list(record)}`{_role(record)}:",
            "",
        ]
        lines += ["| figure | value | 95 % interval |", "|---|---|---|"]
        lines += [
            f"| {key} | {share.value:.4f} | {share.low:.4f} to {share.high:.4f} |"
            for key, share in proportions.items()
        ]
        lines += ["", record.choice_note, ""] if record.choice_note else [""]
    lines += ["## Training", "", f"- epochs: {epochs_text(record)}"]
    origin = manifest.get("started_from")
    lines.append(f"- started from: {printable(str(origin)) if origin else 'fresh weights'}")
    lines += [
        f"- {key}: {printable(str(manifest[key]))}"
        for key in ("ppxcls", "paddle", "samples", "train_list")
        if manifest.get(key)
    ]
    lines += ["- every setting: `config.yaml`", "", "## Use", "", "```python", "import ppxcls", ""]
    lines += [
        f'model = ppxcls.load("{record.folder.name}")  # this folder',
        'print(model.predict("image.jpg"))',
        "```",
        "",
    ]
    lines += [
        "## Limits",
        "",
        "The figures apply to images like those of the evaluation list. `report.html` shows the mistakes.",
        "",
    ]
    front_matter = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{MARK}\n{front_matter}---\n\n" + "\n".join(lines)


def _role(record: Record) -> str:
    """Returns words for images that judged, and for how often they did."""
    if record.judged is None:
        return ""
    count = "once" if record.judged.uses == 1 else f"{record.judged.uses:,} times"
    return f", which neither trained nor chose (used {count})"


def _eval_list(record: Record) -> str:
    loaders = record.shown_config.DataLoader
    dataset = loaders.Eval.dataset if loaders and loaders.Eval else {}
    name = data_name(dataset)
    # The card is made to be published, and the folders of this machine are nobody's business.
    return printable("/".join(Path(name).parts[-2:]) if os.path.isabs(name) else name)
