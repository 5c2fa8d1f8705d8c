"""Whole jobs with inpaint.method diffusion: what its rows say, what is refused, and the same bytes whatever happens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from asymvae.config import InpaintJob
from asymvae.fingerprint import sample_seed
from asymvae.pipeline.executor import LocalExecutor, RayExecutor
from asymvae.pipeline.job import JobResult, run_job
from asymvae.pipeline.plan import ConfigurationError, Recipe, make_plan
from asymvae.pipeline.progress import Tally
from asymvae.pipeline.worker import Report, ShardWorker
from asymvae.storage.audit import audit
from asymvae.storage.shards import Shard
from tests.pipeline.prompted_shards import FAULTS, SAMPLES, write_prompted_shards
from tests.tiny import job, parts_of, pixels_of, rows_of, sample
from tests.tiny_diffusion import write_tiny_diffusion

SHARDS, VARIANTS = 3, 2
PLANNED = SHARDS * SAMPLES * VARIANTS
ERRORS = SHARDS * sum(FAULTS.values()) * VARIANTS


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_prompted_shards(tmp_path_factory.mktemp("prompted"), SHARDS)


@pytest.fixture(scope="module")
def undisturbed(
    shards: str, checkpoint: Path, diffusion_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """OUT of a run in one process."""
    out = tmp_path_factory.mktemp("undisturbed")
    check(run_job(painting(shards, out, checkpoint, diffusion_checkpoint), LocalExecutor()), out, out)
    return out


def diffusion_of(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"path": str(folder), "steps": 2, "prompt": "a {prompt}", "negative_prompt": "fog", **settings}


def painting(urls: str, out: Path, vae: Path, folder: Path, **settings: Any) -> InpaintJob:
    inpaint = {"method": "diffusion", "variants": VARIANTS, "diffusion": diffusion_of(folder)}
    return job(urls, out, vae, **({"inpaint": inpaint, "max_error_fraction": 0.6} | settings))


def check(result: JobResult, out: Path, undisturbed: Path) -> None:
    assert result.exit_code == 0, result
    assert parts_of(out) == parts_of(undisturbed)
    report = audit(str(out), deep=True, shards=result.plan.shards)
    assert report.ok, report
    assert (report.samples, report.planned) == (SHARDS * SAMPLES, PLANNED)
    assert (report.results, report.errors) == (PLANNED - ERRORS, ERRORS)


# --- what comes out -----------------------------------------------------------------------------------------


def test_bad_prompts_and_overrides_are_error_rows_and_the_rest_are_results(undisturbed: Path) -> None:
    errors = rows_of(undisturbed, "errors")
    assert Counter(row["code"] for row in errors) == {code: n * SHARDS * VARIANTS for code, n in FAULTS.items()}
    rows = Counter((row["key"], row["variant"]) for kind in ("results", "errors") for row in rows_of(undisturbed, kind))
    assert len(rows) == PLANNED
    assert set(rows.values()) == {1}


def test_rows_say_seed_and_prompts(undisturbed: Path) -> None:
    rows = {(row["key"], row["variant"]): row for row in rows_of(undisturbed, "results")}

    def said(number: int, variant: int = 0) -> tuple[str, str]:
        row = rows[f"s0-{number:04d}", variant]
        return row["prompt"], row["negative_prompt"]

    assert said(0) == said(0, 1) == ("a cat 0", "fog")
    assert said(2) == ("a stone wall", "fog")
    assert said(3) == ("a cat 3", "dog")
    assert said(4) == ("a caf\N{REPLACEMENT CHARACTER} \x00 {prompt}", "fog")
    assert said(5) == ("a ", "fog")
    assert said(13) == (None, None)
    assert rows["s0-0013", 0]["passed_through"]
    for number, seed in ((0, 0), (1, 7)):
        for variant in range(VARIANTS):
            key = f"s0-{number:04d}"
            assert rows[key, variant]["seed"] == sample_seed(seed, key, variant)


def test_variants_are_different_fills_of_one_image(undisturbed: Path) -> None:
    rows = rows_of(undisturbed, "results")
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["key"], first["variant"], second["variant"]) == (second["key"], 0, 1)
        same = np.array_equal(pixels_of(first), pixels_of(second))
        assert same == first["passed_through"], first["key"]


def test_parquet_holds_overrides_as_text_or_as_structs(
    checkpoint: Path, diffusion_checkpoint: Path, tmp_path: Path
) -> None:
    made = sample(0)
    settings = [{"seed": 7, "prompt": None}, {"seed": None, "prompt": "a wall"}, None]
    columns = {"image": [made["png"]] * 3, "mask": [made["mask.png"]] * 3, "caption": ["cat", "cat", None]}
    structs = [{"width": 64, "asymvae": setting} for setting in settings]
    found = []
    for name, jsons in (("structs", structs), ("text", [json.dumps(struct) for struct in structs])):
        pq.write_table(pa.table(columns | {"json": jsons}), tmp_path / f"{name}.parquet")
        out = tmp_path / name
        names = {"image": ["image"], "mask": ["mask"], "prompt": ["caption"]}
        run_job(
            painting(str(tmp_path / f"{name}.parquet"), out, checkpoint, diffusion_checkpoint, input=names),
            LocalExecutor(),
        )
        rows = rows_of(out, "results")
        found.append([(row["index"], row["variant"], row["prompt"]) for row in rows])
        assert rows[0]["seed"] == sample_seed(7, f"{name}/0", 0)
        assert [row["code"] for row in rows_of(out, "errors")] == ["missing_prompt"] * VARIANTS
    assert found[0] == found[1] == [(0, 0, "a cat"), (0, 1, "a cat"), (1, 0, "a wall"), (1, 1, "a wall")]


# --- the same bytes -----------------------------------------------------------------------------------------


class Backwards(LocalExecutor):
    def run(self, recipe: Recipe, shards: Sequence[Shard], tally: Tally) -> Generator[Report | None, None, None]:
        return super().run(recipe, shards[::-1], tally)


def test_shards_in_another_order(
    shards: str, checkpoint: Path, diffusion_checkpoint: Path, tmp_path: Path, undisturbed: Path
) -> None:
    result = run_job(painting(shards, tmp_path, checkpoint, diffusion_checkpoint), Backwards())
    check(result, tmp_path, undisturbed)


@pytest.mark.parametrize("actors", [1, 2])
def test_one_actor_and_two_actors(
    actors: int,
    cluster: Cluster,
    shards: str,
    checkpoint: Path,
    diffusion_checkpoint: Path,
    tmp_path: Path,
    undisturbed: Path,
) -> None:
    pool = {"min": actors, "max": actors}
    settings = painting(shards, tmp_path, checkpoint, diffusion_checkpoint, workers=pool)
    check(run_job(settings, RayExecutor()), tmp_path, undisturbed)


def test_an_actor_killed_between_two_batches(
    cluster: Cluster,
    shards: str,
    checkpoint: Path,
    diffusion_checkpoint: Path,
    tmp_path: Path,
    undisturbed: Path,
) -> None:
    marker, out = tmp_path / "killed", tmp_path / "out"
    options = diffusion_of(diffusion_checkpoint) | {"marker": str(marker), "key": "s1-0004"}
    method = {"method": "tests.pipeline.killers:KilledAtPainting", "options": options, "variants": VARIANTS}
    result = run_job(painting(shards, out, checkpoint, diffusion_checkpoint, inpaint=method), RayExecutor())
    assert marker.exists()
    check(result, out, undisturbed)


class EndsAfterOne(LocalExecutor):
    """As if the driver were stopped between two shards; tests/pipeline/test_same_bytes.py kills real ones."""

    def run(self, recipe: Recipe, shards: Sequence[Shard], tally: Tally) -> Generator[Report | None, None, None]:
        yield next(super().run(recipe, shards, tally))
        raise KeyboardInterrupt


def test_a_run_that_ended_early_goes_on(
    shards: str, checkpoint: Path, diffusion_checkpoint: Path, tmp_path: Path, undisturbed: Path
) -> None:
    settings = painting(shards, tmp_path, checkpoint, diffusion_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        run_job(settings, EndsAfterOne())
    result = run_job(settings, LocalExecutor())
    assert len(result.plan.left) == SHARDS - 1
    check(result, tmp_path, undisturbed)


# --- what is refused ----------------------------------------------------------------------------------------


def test_other_weights_of_the_unet_are_another_output(
    shards: str, checkpoint: Path, diffusion_checkpoint: Path, tmp_path: Path, undisturbed: Path
) -> None:
    record = json.loads((undisturbed / "_job.json").read_text())
    assert len(record["inpainter"]["sha256"]) == 64
    assert record["affects_output"]["inpaint.diffusion.steps"] == 2
    other = write_tiny_diffusion(tmp_path / "other", seed=1)
    with pytest.raises(ConfigurationError, match=r"inpainter\.sha256: was "):
        make_plan(painting(shards, undisturbed, checkpoint, other))
    copy = write_tiny_diffusion(tmp_path / "copy")  # the same files elsewhere
    assert make_plan(painting(shards, undisturbed, checkpoint, copy)).left == ()
    guided = painting(shards, undisturbed, checkpoint, diffusion_checkpoint)
    values = guided.model_dump()
    values["inpaint"]["diffusion"]["guidance_scale"] = 5.0
    with pytest.raises(ConfigurationError, match=r"inpaint\.diffusion\.guidance_scale: was 7\.5, is 5\.0"):
        make_plan(InpaintJob(**values))


def test_a_worker_that_sees_other_files_than_the_driver_stops(shards: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = write_tiny_diffusion(tmp_path / "unet")
    recipe = make_plan(painting(shards, tmp_path / "out", checkpoint, folder)).recipe
    write_tiny_diffusion(folder, seed=1)
    with pytest.raises(RuntimeError, match="brings other files"):
        ShardWorker(recipe)


def test_a_checkpoint_of_other_latents_is_refused_before_anything_starts(
    shards: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = write_tiny_diffusion(tmp_path / "unet", scaling_factor=0.13025)
    with pytest.raises(ConfigurationError, match=r"^inpaint\.diffusion\.path .*scaling_factor is 0\.13025.*0\.18215"):
        make_plan(painting(shards, tmp_path / "out", checkpoint, folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("inpaint", "says"),
    [
        ({"method": "diffusion", "options": {"steps": 3}}, r"set inpaint\.diffusion"),
        ({"method": "diffusion", "diffusion": {"scheduler": "dimm"}}, r"inpaint\.diffusion\.scheduler 'dimm'"),
        ({"method": "diffusion", "diffusion": {"path": "no/such/folder"}}, r"inpaint\.diffusion\.path.*no folder here"),
        ({"method": "diffusion", "diffusion": {"steps": 3, "strength": 0.1}}, r"inpaint\.diffusion\.strength"),
    ],
)
def test_settings_that_cannot_be_meant(
    inpaint: dict[str, Any], says: str, shards: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make_plan(job(shards, tmp_path, checkpoint, inpaint=inpaint))


def test_settings_of_diffusion_are_none_of_another_method_s(
    shards: str, checkpoint: Path, diffusion_checkpoint: Path, tmp_path: Path
) -> None:
    plain = make_plan(job(shards, tmp_path, checkpoint))
    section = {"diffusion": diffusion_of(diffusion_checkpoint)}
    assert make_plan(job(shards, tmp_path, checkpoint, inpaint=section)).recipe.fingerprint == plain.recipe.fingerprint
    assert not [name for name in plain.record["affects_output"] if name.startswith("inpaint.diffusion")]
    assert plain.record["inpainter"] == {"sha256": None}
