"""Tests of node/cli/settings.py."""

from dataclasses import fields
from pathlib import Path

import pytest

from node.cli import settings
from node.cli.settings import SETTINGS, load_config
from node.config import NodeConfig
from node.errors import ExitCode, KithError


def wrong(data_dir: Path, **more: object) -> KithError:
    with pytest.raises(KithError) as caught:
        load_config(data_dir, **{"given": {}, "environment": {}, **more})  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.exit_code) == ("bad-config", ExitCode.USAGE)
    return caught.value


def write(data_dir: Path, text: str) -> None:
    (data_dir / "node.toml").write_text(text, encoding="utf-8")


def test_every_field_of_the_config_is_a_setting() -> None:
    names = {field.name for field in fields(NodeConfig)} - {"data_dir", "origins"}
    assert {setting.name for setting in SETTINGS} == names


def test_defaults_are_allowed_and_called_default(tmp_path: Path) -> None:
    config = load_config(tmp_path, {}, {})
    assert config == NodeConfig(data_dir=tmp_path)
    assert set(config.origins.values()) == {"default"}
    for setting in SETTINGS:
        assert setting.check(getattr(config, setting.name)) == "", setting.name


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    write(tmp_path, 'name = "file"\nslots = 2\nthreads = 3\n')
    environment = {"KITH_SLOTS": "4", "KITH_THREADS": "5"}
    config = load_config(tmp_path, {"threads": 6, "ctx": None}, environment)
    assert (config.name, config.slots, config.threads, config.ctx) == ("file", 4, 6, 0)
    assert config.origins["name"] == f"{tmp_path / 'node.toml'}, key name"
    assert config.origins["slots"] == "$KITH_SLOTS"
    assert config.origins["threads"] == "option --threads"
    assert config.origins["ctx"] == "default"


def test_lists_and_switches_from_each_origin(tmp_path: Path) -> None:
    write(tmp_path, 'seeds = ["a:1", "b:2"]\nmdns = false\necho_tokens_per_s = 50\n')
    config = load_config(tmp_path, {}, {})
    assert (config.seeds, config.mdns, config.echo_tokens_per_s) == (("a:1", "b:2"), False, 50.0)
    config = load_config(tmp_path, {}, {"KITH_SEEDS": " c:3 , [::1]:4,", "KITH_MDNS": "Yes"})
    assert (config.seeds, config.mdns) == (("c:3", "[::1]:4"), True)


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "gpu-layer = 3\n")
    error = wrong(tmp_path)
    assert "'gpu-layer'" in error.message
    assert error.remedy == "did you mean gpu_layers?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slots = 0", "slots must be from 1 to 256, not 0"),
        ('slots = "2"', "must be a whole number, not '2'"),
        ("slots = true", "must be a whole number, not True"),
        ("ctx = 12", "ctx must be 0 or from 256 to 1,048,576, not 12"),
        ("echo_tokens_per_s = 0", "must be from 0.1 to 1,000,000, not 0"),
        ('adapters = ["x"]', "must be texts of the form NAME=PATH, not 'x'"),
        ('engine = "lama"', "did you mean llama?"),
        ('listen = "7420"', "listen must be HOST:PORT"),
        ('listen = "::1:7420"', "listen must be HOST:PORT"),
        ('seeds = "a:1"', "must be a list of texts"),
        ('seeds = ["b:1", "a:0"]', "not 'a:0'"),
        ('http = "somewhere"', "must be HOST:PORT"),
        ('http_hosts = ["a/b"]', "must be names or addresses"),
        ('name = "a\\nb"', "must be printable"),
        ('engine_url = "localhost:1"', "must start with http"),
        ('engine = "openai"', "needs engine_url"),
        ("slots = ", "is not valid TOML"),
    ],
)
def test_bad_value_in_the_file_names_file_and_fault(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path, text)
    error = wrong(tmp_path)
    assert str(tmp_path / "node.toml") in error.message
    assert words in error.message
    assert error.message.count(" not ") <= 1


def test_bad_value_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    assert wrong(tmp_path, environment={"KITH_SLOTS": "many"}).message == (
        "$KITH_SLOTS: must be a whole number, not 'many'"
    )
    assert "$KITH_MDNS" in wrong(tmp_path, environment={"KITH_MDNS": "maybe"}).message


def test_bad_value_on_the_command_line_names_the_option(tmp_path: Path) -> None:
    assert wrong(tmp_path, given={"gpu_layers": -7}).message.startswith("option --gpu-layers: gpu_layers must be")


def test_named_file_must_exist(tmp_path: Path) -> None:
    assert "there is no configuration file" in wrong(tmp_path, file=tmp_path / "none.toml").message


def test_file_that_is_not_text_or_far_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node.toml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in wrong(tmp_path).message
    monkeypatch.setattr(settings, "FILE_BYTES_MAX", 10)
    write(tmp_path, "# twenty characters..")
    assert "larger than" in wrong(tmp_path).message


def test_relative_model_in_the_file_is_relative_to_the_file(tmp_path: Path) -> None:
    write(tmp_path, 'model = "./a.gguf"')
    assert load_config(tmp_path, {}, {}).model == str(tmp_path / "a.gguf")
    write(tmp_path, 'model = "gpt-oss"')
    assert load_config(tmp_path, {}, {}).model == "gpt-oss"


def test_several_models(tmp_path: Path) -> None:
    write(tmp_path, 'model = "a"\nmore_models = ["b", "./c.gguf"]\nmemory_budget_mb = 4000')
    config = load_config(tmp_path, {}, {"KITH_MODELS": "/the/folder"})  # which is no setting
    assert (config.model, config.more_models) == ("a", ("b", str(tmp_path / "c.gguf")))
    assert config.memory_budget_mb == 4000
    assert load_config(tmp_path, {"more_models": ("d",)}, {}).more_models == ("d",)
    assert "need the engine llama" in wrong(tmp_path, given={"engine": "echo"}).message
    assert "at most 15" in wrong(tmp_path, given={"more_models": ("x",) * 16}).message
