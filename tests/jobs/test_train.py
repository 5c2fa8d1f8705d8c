"""``python -m jobs.train``, as it is called: killed and called again, finished, refused, diverged; and its result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from asymvae.batch import normalised
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.storage.filesystem import list_files, read_bytes
from asymvae.training.folder import RunFolder
from asymvae.training.linear import FILE, BlockTransform
from jobs.train import main
from tests.forks import forks_that_have_imported
from tests.jobs.conftest import Ran
from tests.tiny import file_bytes, picture, tiny_model, write_tar

STEPS = 12
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Both stages, the linear start and the discriminator, in a second or two.
NETWORK = [
    "--network.down_block_out_channels=[16, 32, 64, 64]",
    "--network.layers_per_down_block=1",
    "--network.up_block_out_channels=[16, 32, 64, 64]",
    "--network.layers_per_up_block=1",
    "--network.norm_num_groups=4",
    f"--autoencoder.steps={STEPS}",
    "--autoencoder.linear_start=true",
    "--autoencoder.batch_size=2",
    "--decoder.adversarial_from=4",
]
COMMON = [
    "--crops.size=32",
    "--crops.short_side=[32, 48]",
    "--crops.shuffle_shards=1",
    "--crops.per_image=2",
    f"--decoder.steps={STEPS}",
    "--decoder.batch_size=2",
    "--warmup_steps=3",
    "--average=0.9",
    "--run.device=cpu",
]
SAVE_EVERY = "--run.save_every=5"
pytestmark = pytest.mark.usefixtures("one_thread")  # a run sets torch's threads for the whole process


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards of four images, one of them cut off."""
    folder = tmp_path_factory.mktemp("in")
    for shard in range(2):
        samples = [(f"k{n}", {"png": file_bytes(picture(48, 56, 10 * shard + n), "PNG")}) for n in range(4)]
        samples[2][1]["png"] = samples[2][1]["png"][: 200 if shard else None]
        write_tar(folder / f"{shard}.tar", samples)
    return f"{folder}/*.tar"


@pytest.fixture
def train(urls: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``jobs.train`` in this process."""

    def run(out: Path | str, *flags: str) -> Ran:
        capsys.readouterr()
        try:
            code: int | str | None = main([f"--input.urls={urls}", f"--output.url={out}", *COMMON, *flags])
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


# --- killed ----------------------------------------------------------------------------------------------------

# Every call in a process of its own, forked from one that has imported all, what is imported late as well: imports take
# longer than a run does.
_PROCESSES = forks_that_have_imported(__name__, "asymvae.storage.webdataset", "matplotlib.figure", "torch._dynamo")


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _child(flags: list[str], moment: str, stage: str, step: int) -> None:
    """``jobs.train``, killed at a moment that a test can rely on."""
    import jobs.train

    tell, save = jobs.train._Progress.tell, RunFolder.save_state
    if moment == "step":
        jobs.train._Progress.tell = (  # type: ignore[method-assign]
            lambda self, *told: _die() if told[:2] == (stage, step) else tell(self, *told)
        )
    elif moment == "state":  # its losses are written, the state itself is not
        RunFolder.save_state = (  # type: ignore[method-assign]
            lambda self, name, state: _die() if (name, state["step"]) == (stage, step) else save(self, name, state)
        )
    elif moment == "end":  # the last checkpoint is written, the transform beside it is not
        RunFolder.write_transform = (  # type: ignore[method-assign]
            lambda self, _, *below: _die() if below else None
        )
    sys.exit(main(flags))


def exit_code_of(flags: list[str], moment: str = "", stage: str = "", step: int = 0) -> int | None:
    process = _PROCESSES.Process(target=_child, args=(flags, moment, stage, step))
    process.start()
    process.join()
    return process.exitcode


def losses_of(out: Path | str) -> dict[str, list[Any]]:
    """Every column but the time, of all stages, by step."""
    tables = [pq.read_table(path) for path in sorted(Path(out, "losses").iterdir())]
    rows = [row for table in tables for row in table.drop_columns("seconds").to_pylist()]
    rows.sort(key=lambda row: (row["stage"], row["step"]))
    return {name: [row[name] for row in rows] for name in tables[0].column_names if name != "seconds"}


@pytest.fixture(scope="module")
def finished(urls: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a run that nothing disturbed. Not to be written to."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert exit_code_of([f"--input.urls={urls}", f"--output.url={out}", *COMMON, *NETWORK, SAVE_EVERY]) == 0
    return out


def test_a_run_killed_again_and_again_is_the_undisturbed_run(urls: str, finished: Path, tmp_path: Path) -> None:
    """The same losses at each step, and the same weights: exactly, on one machine."""
    flags = [f"--input.urls={urls}", f"--output.url={tmp_path}", *COMMON, *NETWORK]
    kills = [
        (SAVE_EVERY, "step", "autoencoder", 3),  # before its first state
        (SAVE_EVERY, "step", "autoencoder", 7),
        ("--run.save_every=4", "state", "autoencoder", 12),  # other names for the losses of the same steps
        (SAVE_EVERY, "step", "decoder", 3),  # the first stage was in another process
        (SAVE_EVERY, "step", "decoder", 8),  # amid the adversary's steps
        (SAVE_EVERY, "end", "", 0),
    ]
    for save_every, *moment in kills:
        assert exit_code_of([*flags, save_every], *moment) == -signal.SIGKILL, moment
    assert not (tmp_path / "checkpoint" / FILE).exists()
    assert exit_code_of([*flags, SAVE_EVERY]) == 0

    ours, theirs = losses_of(tmp_path), losses_of(finished)
    assert ours["step"] == [*range(1, STEPS + 1)] * 2
    assert ours == theirs
    assert [value is None for value in ours["discriminator"]] == [True] * (STEPS + 4) + [False] * (STEPS - 4)
    for folder in ("autoencoder", "checkpoint"):
        mine, same = ({p.name: p.read_bytes() for p in (out / folder).iterdir()} for out in (tmp_path, finished))
        assert mine == same
    state, expected = (torch.load(out / "state/decoder.pt", weights_only=True) for out in (tmp_path, finished))
    assert state["step"] == expected["step"] == STEPS
    mine, same = (each["stage"]["discriminator"] for each in (state, expected))
    assert all(torch.equal(tensor, same[name]) for name, tensor in mine.items())


# --- finished --------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(finished: Path) -> None:
    made = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {f"autoencoder/{WEIGHTS}", f"checkpoint/{WEIGHTS}", f"checkpoint/{FILE}", "state/decoder.pt"} <= made
    assert len([name for name in made if name.startswith("pictures/")]) == 6
    first, last = (AsymmetricAutoencoderKL.from_pretrained(finished / name) for name in ("autoencoder", "checkpoint"))
    moved = {
        name.split(".")[0]
        for name, tensor in first.state_dict().items()
        if not torch.equal(tensor, last.get_parameter(name))
    }
    assert moved == {"decoder"}
    losses = losses_of(finished)
    assert max(losses["loss"][:STEPS]) < 0.5  # it began as a linear transform, not as noise
    assert last.config.scaling_factor == first.config.scaling_factor
    pictures = np.stack([picture(48, 56, seed) for seed in (0, 1, 2, 3, 10, 11, 13)])
    with torch.no_grad():
        z = last.encode(normalised(torch.from_numpy(pictures))).latent_dist.mode()
    assert (last.config.scaling_factor * z.std()).item() == pytest.approx(1, abs=0.25)
    transform = BlockTransform.load(finished / "checkpoint" / FILE)
    assert transform.components.shape == (4, 192)


def test_the_checkpoint_loads_in_diffusers(finished: Path, tmp_path: Path) -> None:
    from diffusers import AsymmetricAutoencoderKL as Theirs

    ours = AsymmetricAutoencoderKL.from_pretrained(finished / "checkpoint")
    theirs = Theirs.from_pretrained(finished / "checkpoint").eval()
    image = torch.rand(1, 3, 48, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 48, 40)
    mask[..., 10:30, 10:30] = 1
    with torch.no_grad():
        z = ours.encode(image).latent_dist.mode()
        torch.testing.assert_close(theirs.encode(image).latent_dist.mode(), z, rtol=1e-4, atol=1e-4)
        for given in ({}, {"image": image, "mask": mask}):
            decoded = ours.decode(z, **given).sample
            torch.testing.assert_close(theirs.decode(z, **given).sample, decoded, rtol=1e-4, atol=1e-4)


def test_a_finished_run_called_again_trains_nothing(finished: Path, tmp_path: Path, train: Callable[..., Ran]) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    ran = train(out, *NETWORK, "--run.save_every=3", "--run.threads=1")
    assert ran.code == 0, ran.err
    assert f"{out}/checkpoint, scaling_factor" in ran.out
    assert "step" not in ran.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    ran = train(out, *NETWORK, "--decoder.learning_rate=0.5", "--seed=3", "--run.save_every=3")
    assert ran.code == 2
    assert "holds a run of other settings" in ran.err
    assert "decoder.learning_rate: was 0.0001, is 0.5" in ran.err
    assert "seed: was 0, is 3" in ran.err
    assert "save_every" not in ran.err


# --- an encoder that is there ----------------------------------------------------------------------------------

DECODER = [
    "--network.up_block_out_channels=[8, 16, 32, 32]",
    "--network.layers_per_up_block=1",
    "--network.norm_num_groups=4",
    "--run.save_every=4",
]


def test_a_decoder_over_an_encoder_in_an_object_store(
    s3_url: str, checkpoint: Path, train: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted once (Ctrl-C), called again; the result as float16."""
    import jobs.train

    flags = [*DECODER, f"--network.encoder={checkpoint}", "--output.dtype=float16"]
    with monkeypatch.context() as patch:
        plain = jobs.train._Progress.tell

        def interrupted(self: Any, stage: str, step: int, *told: Any) -> None:
            plain(self, stage, step, *told)
            if step == 6:
                raise KeyboardInterrupt

        patch.setattr(jobs.train._Progress, "tell", interrupted)
        ran = train(s3_url, *flags)
    assert ran.code == 130
    assert "goes on from there" in ran.err
    assert "decoder-00000004.parquet" in list_files(f"{s3_url}/losses")

    ran = train(s3_url, *flags)
    assert ran.code == 0, ran.err
    assert "images left out, over all epochs: image_" in ran.err
    assert [*list_files(f"{s3_url}/losses")] == [f"decoder-{step:08d}.parquet" for step in (4, 8, 12)]
    assert json.loads(read_bytes(f"{s3_url}/_train.json"))["network.encoder"] == str(checkpoint)
    assert set(list_files(f"{s3_url}/checkpoint")) == {"config.json", WEIGHTS}
    made, encoder = AsymmetricAutoencoderKL.from_pretrained(f"{s3_url}/checkpoint"), tiny_model()
    assert made.config.scaling_factor == encoder.config.scaling_factor
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("decoder."):
            torch.testing.assert_close(made.get_parameter(name), tensor.half().float(), rtol=0, atol=0)


def test_a_float16_checkpoint_loads_in_diffusers(checkpoint: Path, tmp_path: Path, train: Callable[..., Ran]) -> None:
    from diffusers import AsymmetricAutoencoderKL as Theirs

    ran = train(tmp_path, *DECODER, f"--network.encoder={checkpoint}", "--output.dtype=float16", "--decoder.steps=1")
    assert ran.code == 0, ran.err
    stored = load_file(tmp_path / "checkpoint" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    ours = AsymmetricAutoencoderKL.from_pretrained(tmp_path / "checkpoint")
    theirs = Theirs.from_pretrained(tmp_path / "checkpoint", torch_dtype=torch.float32).eval()
    z = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode(z).sample, ours.decode(z).sample, rtol=1e-4, atol=1e-4)


# --- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--network.encoder={out}/nothing"], "{out}/nothing"),
        (["--network.encoder={checkpoint}", "--decoder.lpips_weights=none/vgg.pth"], "none/vgg.pth"),
        (["--network.encoder={checkpoint}", "--crops.size=64"], "smaller_than_crop 7"),
        (["--network.encoder={checkpoint}", "--input.image=bmp"], "missing_image 8"),
        (["--network.encoder={checkpoint}", "--decoder.step=3"], "did you mean decoder.steps?"),
        (
            ["--autoencoder.steps=2", "--autoencoder.linear_start=true"],
            "network.up_block_out_channels[0] / norm_num_groups is 2",
        ),
        (["--network.encoder={checkpoint}", "--output.url=http://127.0.0.1:9/x"], "can go to local folders"),
    ],
)
def test_wrong_settings_are_refused_and_do_not_stand_in_the_way_of_right_ones(
    flags: list[str], said: str, checkpoint: Path, tmp_path: Path, train: Callable[..., Ran]
) -> None:
    names = {"out": str(tmp_path), "checkpoint": str(checkpoint)}
    ran = train(tmp_path, *DECODER, *(flag.format(**names) for flag in flags))
    assert ran.code == 2
    assert said.format(**names) in ran.err
    assert ran.out == ""
    assert not (tmp_path / "state").exists()
    if "bmp" in flags[-1]:
        assert train(tmp_path, *DECODER, f"--network.encoder={checkpoint}", "--decoder.steps=1").code == 0


def test_a_run_that_diverges_says_so(checkpoint: Path, tmp_path: Path, train: Callable[..., Ran]) -> None:
    ran = train(tmp_path, *DECODER, f"--network.encoder={checkpoint}", "--decoder.learning_rate=1e30")
    assert ran.code == 1
    assert "error: stage decoder has diverged by step 4" in ran.err
    assert "lower decoder.learning_rate" in ran.err
    assert "another output.url" in ran.err  # here other settings are refused
    assert not (tmp_path / "checkpoint").exists()


def test_storage_that_fails_in_the_middle_is_no_wrong_setting(
    checkpoint: Path, tmp_path: Path, train: Callable[..., Ran]
) -> None:
    flags = [*DECODER, f"--network.encoder={checkpoint}"]
    (tmp_path / "pictures").write_text("in the way")
    ran = train(tmp_path, *flags)
    assert ran.code == 1
    assert "pictures" in ran.err
    assert "goes on from the last state" in ran.err
    (tmp_path / "pictures").unlink()
    assert train(tmp_path, *flags).code == 0
    assert losses_of(tmp_path)["step"] == [*range(1, STEPS + 1)]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for expected in ("autoencoder", "PatchGAN", "exit codes", "examples", "--network.encoder", "losses/*.parquet"):
        assert expected in said
