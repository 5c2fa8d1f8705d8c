"""The README tells the truth: its tables, names and commands are those of the code, and its examples run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from asymvae.benchmark.config import CodecBenchmark, ModelBenchmark, PipelineBenchmark
from asymvae.config import InpaintJob
from asymvae.config_latents import DecodeJob, PrecomputeJob
from asymvae.faults import FAULTS
from asymvae.inpaint.base import METHODS
from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from asymvae.storage.schemas import ERRORS, METRICS, RESULTS, latents_schema
from asymvae.training import folder
from asymvae.training.config import TrainJob
from asymvae.training.evaluation_config import EvaluateJob
from asymvae.training.scores import Evaluation, Preservation, Reconstruction, tables
from jobs.arguments import setting_names
from tests.tiny import job

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
CARD = (ROOT / "configs/demo-checkpoint/README.md").read_text()
TRAINING = set(setting_names(TrainJob))
BENCHMARKS = (ModelBenchmark, PipelineBenchmark, CodecBenchmark)
SETTINGS = {*setting_names(InpaintJob), *TRAINING, *setting_names(EvaluateJob)}
SETTINGS |= {*setting_names(PrecomputeJob), *setting_names(DecodeJob)}
SETTINGS |= {name for benchmark in BENCHMARKS for name in setting_names(benchmark)}
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}


def section(title: str) -> str:
    """The text below a heading, up to the next one of any level."""
    return re.split(rf"^#+ {re.escape(title)}$", README, flags=re.M)[1].split("\n#", 1)[0]


def first_cells(text: str) -> list[str]:
    """The names in the first column of the tables of a text."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


def example(holds: str) -> str:
    (found,) = [block for block in blocks("python") if holds in block]
    return found


def test_the_table_of_error_codes_is_the_code_s_own() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", section("Error codes"), flags=re.M)
    table = {code: (stage, message.replace("{{", "{").replace("}}", "}")) for code, (stage, message) in FAULTS.items()}
    assert {code: (stage, message) for code, stage, message in rows} == table
    assert [code for code, _, _ in rows] == list(FAULTS)


def test_the_columns_are_those_of_the_schemas() -> None:
    assert first_cells(section("Columns")) == RESULTS.names
    assert re.findall(r"`(\w+)`", section("Columns").partition("`errors`:")[2].partition("Messages")[0]) == [
        *("key", "variant", "index", "stage", "code", "message")
    ]
    assert ERRORS.names == ["key", "variant", "index", "stage", "code", "message"]
    assert ["key", "variant", "index", *first_cells(section("Metrics"))] == METRICS.names


def test_the_columns_of_latents_are_those_of_the_schema() -> None:
    table = section("Precompute latents").partition("| column |")[2]
    assert (
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]+)\|", table, flags=re.M)))
        == latents_schema("float16").names
    )


def test_the_configurations_of_latents_are_jobs() -> None:
    for name, settings in (("precompute-latents", PrecomputeJob), ("decode-latents", DecodeJob)):
        settings(**yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()))


def test_the_methods_are_all_there() -> None:
    assert {*METHODS, "package.module:Class"} == set(first_cells(section("Inpainters")))


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_is_named_exists(page: str) -> None:
    text = PAGES[page]
    named = set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_]+(?:\.[a-z_]+)*)\b[^`(]*`", text))
    named |= set(re.findall(r"--([a-z_]+\.[a-z_.]+)\b", text))
    named |= {
        variable.lower().replace("__", ".")
        for variable in re.findall(r"\bASYMVAE_([A-Z_]+)\b", text)
        if "__" in variable
    }
    named = {name for name in named if not name.endswith((".png", ".jpg"))}  # fields of a tar
    named -= {"run.stages", "inpaint.diffusion"}  # of a commit; a section of settings
    named -= {"latents.padding", "latents.rest"}  # of a LatentDataset
    assert named <= SETTINGS, named - SETTINGS
    if page == "README.md":
        assert len(named) > 15


def test_the_yaml_is_a_job() -> None:
    for block in blocks("yaml"):
        settings = yaml.safe_load(block)
        (TrainJob if "decoder" in settings else InpaintJob)(**settings)
    assert blocks("yaml")


def test_what_is_said_of_training_is_so() -> None:
    assert set(first_cells(section("Training settings"))) <= TRAINING
    written = re.findall(r"^OUT/(\S+)", section("What training writes"), flags=re.M)
    assert {*re.findall(r"^(\S+) {2,}", folder.__doc__ or "", flags=re.M), "losses.png"} == set(written)


def test_the_tables_of_an_evaluation_are_headed_as_they_are_printed() -> None:
    evaluation = Evaluation(8, preservations=[Preservation(256, "a", "none", 1.0, 0.1)])
    evaluation.reconstructions = [Reconstruction(256, "a", dict.fromkeys(("model", "bilinear", "linear"), 1.0))]

    def heads(text: str) -> list[list[str]]:
        return [re.split(r" *\| *", line) for line in text.splitlines() if re.match(r"\| *longest side", line)]

    assert heads(section("How good it is")) == heads(tables(evaluation))
    assert len(heads(tables(evaluation))) == 2


def test_every_job_and_configuration_is_listed() -> None:
    table = section("Architecture").partition("**Jobs.**")[2]
    jobs = {f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("*.py") if "__main__" in path.read_text()}
    assert set(first_cells(table)) == jobs
    listed = set(re.findall(r"\]\((configs/[^)]+)\)", table))
    assert listed == {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}


def test_the_model_card_is_of_the_training_that_is_configured() -> None:
    run = TrainJob(**yaml.safe_load((ROOT / "configs/train-demo.yaml").read_text()))
    for stage in (run.autoencoder, run.decoder):
        assert f"{stage.steps:,} steps of {stage.batch_size} crops" in CARD
        assert f"AdamW at {stage.learning_rate:g} after {run.warmup_steps} steps" in CARD
    assert f"{run.crops.size} px crops" in CARD
    assert "between {} and {} px".format(*run.crops.short_side) in CARD
    assert f"decay {run.average:g}; autocast to {run.run.precision}; seed {run.seed}" in " ".join(CARD.split())
    photographs = re.findall(r"^\| `", (ROOT / "configs/photos/SOURCES.md").read_text(), flags=re.M)
    assert f"{len(photographs)} pictures from" in CARD
    assert f"{len(photographs)} other photographs" in " ".join(README.split())
    front = yaml.safe_load(CARD.split("---")[1])
    assert (front["library_name"], front["license"]) == ("diffusers", "apache-2.0")
    for link in re.findall(r"\]\(([^)#:]+)\)", CARD):
        assert (ROOT / "configs/demo-checkpoint" / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_file_that_is_named_exists(page: str) -> None:
    text = PAGES[page]
    for module in re.findall(r"(?:python -m |`)(jobs\.\w+)", text):
        assert importlib.util.find_spec(module), module
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text, flags=re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M), target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:asymvae|jobs|configs|tests)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), path
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, flags=re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the project's root after `make demo`, but for the demo's result."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def run(code: str, name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": name}
    exec(compile(code, f"README.md ({name})", "exec"), names)
    return names


def test_the_notebook_and_the_reader(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    result = run(example("run_job"), "notebook")["result"]
    assert (result.exit_code, result.audit.results, dict(result.errors)) == (0, 6, {"missing_mask": 1})
    capsys.readouterr()
    run(example("pq.read_table").replace("out/demo/result", "out/notebook"), "reader")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("00002 meadow-none (384, 256) ")


def test_the_model_alone(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    names = run(example("from_pretrained"), "model")
    assert names["decoded"].shape == names["image"].shape


def test_the_inpainter_of_the_reader_s_own(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "my_fills.py").write_text(example("# my_fills.py"))
    monkeypatch.syspath_prepend(workplace)
    settings = job(
        "configs/samples/00002.tar", "out/mean", "configs/demo-checkpoint", inpaint={"method": "my_fills:MeanFill"}
    )
    try:
        result = run_job(settings, LocalExecutor())
    finally:
        sys.modules.pop("my_fills", None)
    assert result.exit_code == 0
    metrics = {row["key"]: row for row in pq.read_table("out/mean/metrics/00002.parquet").to_pylist()}
    assert len(metrics) == 6
    assert metrics["sunset-box"]["max_abs_known"] == 0
    assert metrics["sunset-box"]["mse_known"] > 0
