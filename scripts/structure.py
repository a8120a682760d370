"""The shape of a checkout in figures, to compare one version with another: ``python scripts/structure.py [CHECKOUT]``.

It reads the code as text, and runs one small process to count how often values of a config are checked.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Who names a component of each kind beside its own file must be edited for another one of the kind.
EXAMPLES = {
    "model": ["xception41p"],
    "transform": ["RandomErasing"],
    "schedule": ["Cyclic"],
    "metric": ["ClassReport"],
    "tracker": ["Curves", "VisualDL"],
}
COUNT = """
import json, sys
import ppxcls
from pathlib import Path
import cv2, numpy as np
folder = Path(sys.argv[1])
for name in ("train", "val"):
    (folder / f"{name}_list.txt").write_text("".join(f"{i}.png {i % 10}\\n" for i in range(20)))
for i in range(20):
    cv2.imwrite(str(folder / f"{i}.png"), np.full((80, 80, 3), i, np.uint8))
data = {"image_root": folder, "cls_label_path": folder / "train_list.txt"}
overrides = [f"DataLoader.{mode}.dataset.{key}={value}" for mode in ("Train", "Eval") for key, value in data.items()]
calls = 0
def count(frame, event, argument):
    global calls
    code = frame.f_code  # PyYAML has a function of this name too
    calls += event == "call" and code.co_name == "check_value" and "ppxcls" in Path(code.co_filename).parts
def counted(function):
    global calls
    calls = 0
    sys.setprofile(count)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return calls, result
ppxcls.list_models()
at_load, config = counted(lambda: ppxcls.load_config(sys.argv[2], [*overrides, f"Global.output_dir={folder}/output"]))
at_build, _ = counted(lambda: ppxcls.build_trainer(config))
print(json.dumps([at_load, at_build]))
"""


def modules(package: Path) -> list[Path]:
    """All Python files of a package."""
    return sorted(package.rglob("*.py"))


def rows_of_the_layering_test(checkout: Path) -> tuple[int, int]:
    """Rows, and units in them."""
    tree = ast.parse((checkout / "tests/test_structure.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ROWS":
            rows = ast.literal_eval(node.value)
            return len(rows), sum(map(len, rows))
    raise SystemExit("tests/test_structure.py has no ROWS")


def trainer_arguments(package: Path) -> int:
    """Parameters of ``Trainer``, without ``self``."""
    for file in modules(package):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name == "Trainer":
                (init,) = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
                return len(init.args.args) + len(init.args.kwonlyargs) - 1
    raise SystemExit("there is no class Trainer")


def naming(folder: Path, words: list[str]) -> int:
    """Python files that name one of the words."""
    return sum(any(word in file.read_text(encoding="utf-8") for word in words) for file in modules(folder))


def checks(checkout: Path) -> tuple[int, int]:
    """Values that are checked when the quickstart's config is loaded, and again when its trainer is built."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", COUNT, folder, str(checkout / "configs/quickstart.yaml")]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment)  # noqa: S603  this program
    at_load, at_build = json.loads(result.stdout.splitlines()[-1])
    return at_load, at_build


def main() -> None:
    """Print the table."""
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    package = checkout / "ppxcls"
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in modules(package)}
    loose = [file for file in lines if file.parent == package and file.name != "__init__.py"]
    rows, units = rows_of_the_layering_test(checkout)
    at_load, at_build = checks(checkout)
    print(f"rooms (folders of the package)         {len({file.parent for file in lines}) - 1}")
    share = sum(lines[file] for file in loose) / sum(lines.values())
    print(f"loose modules beside them              {len(loose)}, with {share:.0%} of the lines")
    print(f"rows and units of the layering test    {rows} rows, {units} units")
    print(f"arguments of Trainer                   {trainer_arguments(package)}")
    print(f"values checked at load, again at build {at_load}, {at_build}")
    for kind, words in EXAMPLES.items():
        named = f"{naming(package, words)} of the package, {naming(checkout / 'tests', words)} of the tests"
        print(f"files that name a {kind + ' (' + ', '.join(words) + ')':37s} {named}")
    print(f"lines, longest file                    {sum(lines.values())}, {max(lines.values())}")


if __name__ == "__main__":
    main()
