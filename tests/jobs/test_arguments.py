"""Settings from flags, environment and YAML; and what is said when they are wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from asymvae.config import InpaintJob
from asymvae.fingerprint import settings_by_name
from jobs.arguments import parse

NEEDED = ("--input.urls=in/*.tar", "--output.url=out")


def settings(*arguments: str, needed: tuple[str, ...] = NEEDED) -> InpaintJob:
    return parse(InpaintJob, argparse.ArgumentParser(), [*needed, *arguments])[0]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, needed: tuple[str, ...] = NEEDED) -> str:
    """What is said on stderr while it exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        settings(*arguments, needed=needed)
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return f"--config={path}"


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml_file(tmp_path, "mask: {dilate: 1, feather: 1, grid: 1}\nseed: 1\ncomposite: none\n")
    monkeypatch.setenv("ASYMVAE_MASK__FEATHER", "2")
    monkeypatch.setenv("ASYMVAE_MASK__GRID", "2")
    monkeypatch.setenv("asymvae_seed", "2")
    job = settings(config, "--mask.grid=3", "--max_error_fraction", "0.5")
    assert (job.mask.dilate, job.mask.feather, job.mask.grid) == (1, 2, 3)
    assert (job.seed, job.composite, job.max_error_fraction) == (2, "none", 0.5)
    assert job.workers.batch_size == 8  # the default


def test_a_file_alone_is_enough(tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "input: {urls: [a.tar, 'b{1,2}.tar'], image: jpg}\noutput: {url: é}\n")
    job = settings(config, needed=())
    assert job.input.urls == ("a.tar", "b{1,2}.tar")
    assert job.input.image == ("jpg",)
    assert job.output.url == "é"


@pytest.mark.parametrize(
    ("arguments", "urls"),
    [
        (["--input.urls=s3://b/{a,b}-{00..11}.tar"], ("s3://b/{a,b}-{00..11}.tar",)),
        (["--input.urls", "s3://b/{a,b}.tar"], ("s3://b/{a,b}.tar",)),
        (["--input.urls=[ab]*.tar"], ("[ab]*.tar",)),
        (['--input.urls=["{a,b}.tar", "c.tar"]'], ("{a,b}.tar", "c.tar")),
        (["--input.urls=a.tar", "--input.urls={b,c}.tar"], ("a.tar", "{b,c}.tar")),
    ],
)
def test_urls_stay_whole(arguments: list[str], urls: tuple[str, ...]) -> None:
    assert settings(*arguments, "--output.url=out", needed=()).input.urls == urls


def test_urls_stay_whole_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYMVAE_INPUT__URLS", "s3://b/{a,b}.tar")
    monkeypatch.setenv("ASYMVAE_INPUT__IMAGE", "jpg, png")
    job = settings("--output.url=out", needed=())
    assert (job.input.urls, job.input.image) == (("s3://b/{a,b}.tar",), ("jpg", "png"))


@pytest.mark.parametrize("text", ["jpg,png", '["jpg", "png"]'])
def test_field_names_are_a_list(text: str) -> None:
    assert settings(f"--input.image={text}").input.image == ("jpg", "png")


def test_no_field_at_all_is_a_list_too() -> None:
    assert settings("--input.overrides=[]").input.overrides == ()


def test_a_prompt_keeps_its_braces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings("--inpaint.diffusion.prompt={prompt}, a photo").inpaint.diffusion.prompt == "{prompt}, a photo"
    monkeypatch.setenv("ASYMVAE_INPAINT__DIFFUSION__PROMPT", "[a] {prompt}")
    assert settings().inpaint.diffusion.prompt == "[a] {prompt}"


def test_options_of_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings('--inpaint.options={"tolerance": 0.1}').inpaint.options == {"tolerance": 0.1}
    config = yaml_file(tmp_path, "inpaint: {options: {tolerance: 0.2}}")
    assert settings(config).inpaint.options == {"tolerance": 0.2}
    monkeypatch.setenv("ASYMVAE_INPAINT__OPTIONS", '{"tolerance": 0.3}')
    assert settings().inpaint.options == {"tolerance": 0.3}


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--mask.fether=3", "mask.feather"),
        ("--mask.fether", "mask.feather"),
        ("--msk.feather=3", "mask.feather"),
        ("--input.url=a", "input.urls"),
        ("--worker.gpus=0", "workers.gpus"),
        ("--max-error-fraction=1", "max_error_fraction"),
        ("--confg=x", "config"),
        ("--mask.feath=3", "mask.feather"),  # no abbreviations
    ],
)
def test_an_unknown_flag_names_the_nearest(flag: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, flag)
    assert flag.partition("=")[0] in said
    assert f"did you mean {near}?" in said


@pytest.mark.parametrize(
    ("text", "name", "near"),
    [
        ("mask: {fether: 3}", "mask.fether", "mask.feather"),
        ("msk: {feather: 3}", "msk", "mask"),
        ("inputs: {urls: a}", "inputs", "input"),
        ("sead: 3", "sead", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    text: str, name: str, near: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, yaml_file(tmp_path, text))
    assert f"{name}: unknown setting; did you mean {near}?" in said


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("ASYMVAE_MASK__FETHER", "ASYMVAE_MASK__FEATHER"),
        ("ASYMVAE_MSK__FEATHER", "ASYMVAE_MASK__FEATHER"),
        ("ASYMVAE_MASK_FEATHER", "ASYMVAE_MASK__FEATHER"),
        ("ASYMVAE_SEAD", "ASYMVAE_SEED"),
        ("ASYMVAE_SEED__X", "ASYMVAE_SEED"),
        ("ASYMVAE_INPAINT__OPTIONS__TOLERANCE", "ASYMVAE_INPAINT__OPTIONS"),  # it would come as text
    ],
)
def test_an_unknown_variable_names_the_nearest(
    variable: str, near: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "3")
    said = refusal(capsys)
    assert variable in said
    assert f"did you mean {near}?" in said


WRONG: dict[str, Any] = {
    "mask.feather": "wide",
    "mask.dilate": -1,
    "workers.batch_size": 0,
    "workers.gpus": -1,
    "composite": "blend",
    "input.mask_polarity": "white",
    "inpaint.variants": 1.5,
    "output.quality": 101,
    "seed": "x",
    "max_error_fraction": 2,
    "model.dtype": "float8",
    "model.tiling": "sometimes",
    "model.compile": "512",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_names_its_setting_wherever_it_comes_from(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    value = WRONG[name]
    section, _, field = name.rpartition(".")
    assert f" {name}: " in refusal(capsys, f"--{name}={value}")
    text = f"{section}: {{{field}: {value}}}" if section else f"{field}: {value}"
    assert f" {name}: " in refusal(capsys, yaml_file(tmp_path, text))
    monkeypatch.setenv("ASYMVAE_" + name.upper().replace(".", "__"), str(value))
    assert f" {name}: " in refusal(capsys)


def test_what_must_be_set_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, needed=())
    assert "input.urls: must be set" in said
    assert "output.url: must be set" in said
    assert "input.urls" not in refusal(capsys, needed=("--input.urls=a",))
    assert "input.urls: must be set" in refusal(capsys, "--input.format=parquet", needed=("--output.url=b",))


def test_a_minimum_above_its_maximum(capsys: pytest.CaptureFixture[str]) -> None:
    assert "workers.max (2) is less than workers.min (3)" in refusal(capsys, "--workers.min=3", "--workers.max=2")


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "42", "", "{1: 2}"])
def test_a_file_that_holds_no_settings(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path / "job.yaml") in refusal(capsys, yaml_file(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path / "none.yaml") in refusal(capsys, f"--config={tmp_path}/none.yaml")
    assert str(tmp_path) in refusal(capsys, f"--config={tmp_path}")
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x80")
    assert "is not YAML" in refusal(capsys, f"--config={tmp_path}/job.yaml")


def test_text_that_is_no_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "inpaint.options" in refusal(capsys, "--inpaint.options={bad")
    monkeypatch.setenv("ASYMVAE_MASK", "{bad")
    assert '"mask"' in refusal(capsys)


def test_a_file_without_config_before_it_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "job.yaml")
    assert "job.yaml" in said
    assert "--config" in said


def test_help_names_every_setting_with_its_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as exit_:
        settings("--help")
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for name, _, _ in settings_by_name(settings()):
        assert f"--{name} " in said
        *sections, field = name.split(".")
        model: Any = InpaintJob
        for section in sections:
            model = model.model_fields[section].annotation
        why = model.model_fields[field].description
        assert why, name
        assert why in said, name
