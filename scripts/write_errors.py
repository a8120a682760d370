"""Write ``docs/errors.md``, the text of every error and warning, from the code: ``python scripts/write_errors.py``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs/errors.md"
HEAD = """# Every error and warning

Written by `python scripts/write_errors.py` from the code; a test checks that it is current. `…` stands for what the message
names, such as a file or a key. What to do about the most frequent ones is under [troubleshooting](troubleshooting.md).
"""
# Name of the exception, or of the call: title and first words of the line on the terminal.
KINDS = {
    "error": "Invalid configs (`config error: file:line: key: …`, exit code 2)",
    "ConfigError": "Invalid configs (`config error: file:line: key: …`, exit code 2)",
    "ValueError": "Values that a component or a file refuses (part of another error)",
    "DataError": "Data (`error: …`, exit code 1)",
    "CheckpointError": "Weights and checkpoints (`error: …`, exit code 1)",
    "RunFolderError": "The run's folder (`error: …`, exit code 1)",
    "JobError": "Several processes and nodes (`error: …`, exit code 1)",
    "DeviceError": "Devices",
    "TrainingError": "Training (`error: …`, exit code 1)",
    "PaddleError": "Paddle (`error: …`, exit code 1)",
    "OSError": "Files and disks (`error: …`, exit code 1)",
    "_end": "A process that hangs or has lost its launcher (`error: rank …`, exit code 1)",
    "Preempted": "Stopped by a signal (exit code 75)",
    "warning": "Warnings: the run goes on",
    "return": "Reasons that stand in other messages",
}
LEAST_WORDS = 5  # of a returned text; shorter ones are names


def text_of(node: ast.expr) -> str | None:
    """A string with … for its parts that are not known here; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{text_of(node.left) or '…'}{text_of(node.right) or '…'}"
    return None


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """What is raised, and what is logged as a warning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield node.exc
        elif isinstance(node, ast.Call) and name_of(node) in ("warning", "_end"):
            yield node


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def messages() -> dict[str, dict[str, set[str]]]:
    """The texts by kind, each with the modules that have it."""
    found: dict[str, dict[str, set[str]]] = {title: {} for title in KINDS.values()}
    for file in sorted((ROOT / "ppxcls").rglob("*.py")):
        tree, module = ast.parse(file.read_text()), str(file.relative_to(ROOT / "ppxcls"))
        for call in calls(tree):
            texts = [text for text in map(text_of, call.args) if text and any(c.isalpha() for c in text)]
            if (title := KINDS.get(name_of(call))) and texts:
                found[title].setdefault(max(texts, key=len), set()).add(module)
        for text in reasons(tree):
            found[KINDS["return"]].setdefault(text, set()).add(module)
    return found


def reasons(tree: ast.AST) -> Iterator[str]:
    """Longer texts that functions return or set, for others to raise or to log."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Return | ast.Assign) and node.value is not None:
            parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            yield from (text for text in map(text_of, parts) if text and is_reason(text))


def is_reason(text: str) -> bool:
    """Whether it reads as a sentence, and is no code, address, pattern or comment."""
    return not re.search(r"\n|\||://|^#|import ", text) and len(re.findall(r"[a-z']{2,}", text)) >= LEAST_WORDS


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, texts in messages().items():
        rows = [f"| {shown(text)} | {', '.join(f'`{home}`' for home in sorted(homes))} |" for text, homes in sorted(texts.items())]
        parts.append(f"\n## {title}\n\n| text | from |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def shown(text: str) -> str:
    """A text as code in the cell of a table."""
    line = " ".join(text.replace("|", "\\|").split())
    return f"`` {line} ``" if "`" in line else f"`{line}`"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
