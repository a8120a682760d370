"""The config of a run, which may be a download, names no address and no place to write outside its folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from ppxcls.config import trust
from ppxcls.config.load import RUN_CONFIG_HEADER
from ppxcls.config.values_of_runs import export_folder_of
from tests.conftest import SMALL_NETWORK

ARCH = "Arch: {name: Xception41, class_num: 3}\n"


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who trusts the network of the tests, and no run."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "_trusted_names", set())
    trust.record_trust([trust.read_code(Path(SMALL_NETWORK))])


def write_run(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(RUN_CONFIG_HEADER + ARCH + text)
    return folder


def test_an_address_is_refused_unless_the_command_line_repeats_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "Infer: {infer_imgs: 's3://bucket/x'}\n")
    message = r"config\.yaml:3: Infer\.infer_imgs: refused, because the config of a run that was not trained here \(or was moved since\) names an address"
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.load_config(run)
    config = ppxcls.load_config(run, ["Infer.infer_imgs=s3://bucket/y"])
    assert config.Infer is not None
    assert config.Infer.infer_imgs == "s3://bucket/y"


def test_the_yaml_of_a_user_may_name_an_address(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(ARCH + "Infer: {infer_imgs: 's3://bucket/x'}\n")
    config = ppxcls.load_config(tmp_path / "mine.yaml")
    assert config.Infer is not None
    assert config.Infer.infer_imgs == "s3://bucket/x"


def test_the_export_of_a_run_goes_to_the_default_or_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "output/run", "Global: {save_inference_dir: output/run/deployed}\n")
    assert export_folder_of(ppxcls.load_config(run)) == Path("output/run/deployed")
    other = write_run(tmp_path / "output/other", "Global: {save_inference_dir: output/run}\n")
    with pytest.raises(
        ppxcls.ConfigError, match=r"not in the run's folder: 'output/run'; if you want it, repeat"
    ):
        export_folder_of(ppxcls.load_config(other))
    with_option = ppxcls.load_config(other, ["Global.save_inference_dir=output/run"])
    assert export_folder_of(with_option) == Path("output/run")
    (tmp_path / "mine.yaml").write_text(ARCH + "Global: {save_inference_dir: ../anywhere}\n")
    assert export_folder_of(ppxcls.load_config(tmp_path / "mine.yaml")) == Path("../anywhere")


def test_a_folder_without_results_is_a_run_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "Infer: {infer_imgs: 'https://host/x'}\n")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().removeprefix(RUN_CONFIG_HEADER))
    with pytest.raises(ppxcls.ConfigError, match="names an address"):
        ppxcls.load_config(run)
    ppxcls.load_config(run / "config.yaml")  # a YAML that the user names, beside no results
    (run / "best_model.safetensors").touch()
    with pytest.raises(ppxcls.ConfigError, match="names an address"):
        ppxcls.load_config(run / "config.yaml")


def test_another_network_is_trained_beside_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "output/run", "Global: {output_dir: /somewhere/else}\n")
    assert ppxcls.load_config(run).run_folder == run
    config = ppxcls.load_config(run, ["Arch.name=Xception65"])
    assert config.run_folder == tmp_path / "output/Xception65"
    overrides = ["Arch.name=Xception65", f"Global.output_dir={tmp_path}/mine"]
    assert ppxcls.load_config(run, overrides).run_folder == tmp_path / "mine/Xception65"


def test_a_run_has_no_base(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("token: hunter2\n")
    run = write_run(tmp_path / "run", "base: ../secret.yaml\n")
    with pytest.raises(ppxcls.ConfigError, match=r"config\.yaml:3: base: the config of a run has no base$"):
        ppxcls.load_config(run)


def test_a_run_that_the_user_trusts_may_name_an_address_until_it_changes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "Infer: {infer_imgs: 's3://bucket/x'}\n")
    config = ppxcls.load_config(run, trust=True)
    assert config.Infer is not None
    assert config.Infer.infer_imgs == "s3://bucket/x"
    ppxcls.load_config(run)
    shutil.copytree(run, tmp_path / "copy")
    ppxcls.load_config(tmp_path / "copy")  # the same text reads the same data
    with open(run / "config.yaml", "a") as file:
        file.write("Global: {save_inference_dir: /elsewhere}\n")
    with pytest.raises(ppxcls.ConfigError, match="names an address"):
        ppxcls.load_config(run)


def test_a_run_of_the_users_own_exports_to_the_folder_of_its_yaml(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small(**{"Global.save_inference_dir": str(tmp_path / "deployed"), "Global.epochs": 1})
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    trainer.fit()
    assert export_folder_of(ppxcls.load_config(trainer.output_dir)) == tmp_path / "deployed"
    shutil.copytree(trainer.output_dir, tmp_path / "copy")
    with pytest.raises(ppxcls.ConfigError, match="names a folder to write to"):
        export_folder_of(ppxcls.load_config(tmp_path / "copy"))


def test_training_with_the_config_of_a_stranger_does_not_make_it_the_user_s_own(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small(**{"Global.epochs": 1, "Global.save_inference_dir": str(tmp_path / "elsewhere")})
    run = tmp_path / "stranger/Xception41"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(RUN_CONFIG_HEADER + file.read_text())
    for source in (run, run / "config.yaml"):
        trainer = ppxcls.build_trainer(ppxcls.load_config(source))
        trainer.fit()
        assert trainer.output_dir == run
    with pytest.raises(ppxcls.ConfigError, match="names a folder to write to"):
        export_folder_of(ppxcls.load_config(run))
    ppxcls.build_trainer(ppxcls.load_config(run, trust=True)).fit()
    assert export_folder_of(ppxcls.load_config(run)) == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Infer: {infer_imgs: 's3://bucket/x'}\n", "Infer.infer_imgs: .* names an address"),
        ("Global: {save_inference_dir: /elsewhere}\n", "Global.save_inference_dir: .* a folder to write to"),
        ("Global: {output_dir: /elsewhere}\n", "Global.output_dir: .* names a folder to write to"),
        ("base: ../secret.yaml\n", "base: the config of a run has no base"),
    ],
)
def test_a_stranger_s_run_as_the_base_of_the_user_s_yaml(text: str, message: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", text)
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: run/config.yaml\nGlobal: {epochs: 3}\n")
    with pytest.raises(ppxcls.ConfigError, match=rf"run/config\.yaml:3: {message}"):
        ppxcls.load_config(mine)
    with pytest.raises(ppxcls.ConfigError, match=rf"run/config\.yaml:3: {message}"):
        ppxcls.load_config({"base": str(tmp_path / "run/config.yaml")})
    if "base" in text:
        return
    section, key, value = text.replace("{", "").rstrip("}\n").replace(": ", " ").split()
    mine.write_text(f"base: run/config.yaml\n{section}: {{{key}: {value}}}\n")
    ppxcls.load_config(mine)  # the user's own words
    mine.write_text("base: run/config.yaml\n")
    ppxcls.load_config(mine, trust=True)
    ppxcls.load_config(mine)


def test_a_run_as_a_base_may_name_the_default_folders(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", f"Global: {{output_dir: {tmp_path}}}\n")
    assert ppxcls.load_config({"base": str(run / "config.yaml")}).Global.output_dir == str(tmp_path)
    other = write_run(tmp_path / "other", "Global: {output_dir: ./output, save_inference_dir: ./deploy}\n")
    default = ppxcls.load_config({"Arch": {"name": "Xception41"}}).Global.save_inference_dir
    text = (other / "config.yaml").read_text().replace("./deploy", default)
    (other / "config.yaml").write_text(text)
    ppxcls.load_config({"base": str(other / "config.yaml")})
