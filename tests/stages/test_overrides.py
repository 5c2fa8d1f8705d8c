"""A sample's json: what it sets, what is none of ours, and what makes the sample an error row."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asymvae.config import InpaintSettings
from asymvae.faults import Fault
from asymvae.fingerprint import sample_seed
from asymvae.inpaint.base import Inpainter, load_inpainter
from asymvae.inpaint.none import NoFill
from asymvae.stages.overrides import MOST_SEED, Overrides, read_overrides
from asymvae.stages.prepare import Planned, Prepare
from tests.tiny import job, sample

ALL = frozenset({"seed", "prompt", "negative_prompt"})
IMG2DATASET = {"url": "http://x/1.jpg", "width": 640, "height": 480, "sha256": "00", "seed": "not ours", "exif": "{}"}


def of(ours: Any) -> bytes:
    return json.dumps(IMG2DATASET | {"asymvae": ours}).encode()


@pytest.mark.parametrize(
    ("content", "overrides"),
    [
        (json.dumps(IMG2DATASET).encode(), Overrides()),
        (b"{}", Overrides()),
        (of(None), Overrides()),
        (of({}), Overrides()),
        (of({"seed": 0, "prompt": "", "negative_prompt": "fog"}), Overrides(0, "", "fog")),
        (of({"seed": MOST_SEED}), Overrides(MOST_SEED)),
        (of({"seed": None, "prompt": "a wall"}), Overrides(None, "a wall")),
        (b'\xef\xbb\xbf{"asymvae": {"seed": 3}}', Overrides(3)),
        (rb'{"asymvae": {"prompt": "\ud83d\ude00 \ud83d"}}', Overrides(None, "\N{GRINNING FACE} ?")),
    ],
)
def test_what_a_json_sets(content: bytes, overrides: Overrides) -> None:
    assert read_overrides(content, ALL) == overrides


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no json", b"[1]", b"null", b"7", b'"text"', b'{"asymvae": {"seed": 7}', b"\xff\xfe\xff", b"[" * 100_000,
        b'{"asymvae": {"seed": 1' + b"0" * 10_000 + b"}}", of([]), of(7), of("seed"), of(False),
    ],
)  # fmt: skip
def test_what_is_no_object_of_ours(content: bytes) -> None:
    fault = read_overrides(content, ALL)
    assert isinstance(fault, Fault)
    assert fault.code == "json_invalid"


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        ({"seed": -1}, "the json's 'seed' is not a whole number from 0 to 9223372036854775807"),
        ({"seed": MOST_SEED + 1}, "the json's 'seed' is not"),
        ({"seed": 7.0}, "the json's 'seed' is not"),
        ({"seed": True}, "the json's 'seed' is not"),
        ({"seed": "7"}, "the json's 'seed' is not"),
        ({"prompt": 7}, "the json's 'prompt' is not a text"),
        ({"prompt": ["a"], "seed": 7}, "the json's 'prompt' is not a text"),
        ({"negative_prompt": {}}, "the json's 'negative_prompt' is not a text"),
    ],
)
def test_values_out_of_range(ours: dict[str, Any], says: str) -> None:
    fault = read_overrides(of(ours), ALL)
    assert isinstance(fault, Fault)
    assert fault.code == "override_out_of_range"
    assert fault.message.startswith(says)


@pytest.mark.parametrize("ours", [{"strength": 0.5}, {"sede": 7}, {"prompt": "a method that takes no prompt"}])
def test_an_unknown_override_says_what_there_is_and_nothing_of_the_samples(ours: dict[str, Any]) -> None:
    fault = read_overrides(of(ours), frozenset({"seed"}))
    assert isinstance(fault, Fault)
    assert fault.code == "override_unknown"
    assert fault.message == "the json's 'asymvae' has a key that inpaint.method doesn't take; it takes seed"


class Checked(NoFill):
    """Takes prompts, and none that is empty."""

    overrides = ALL

    def check(self, item: Any) -> Fault | None:
        return None if item.template or item.prompt else Fault("missing_prompt")

    def prompts_of(self, item: Any) -> tuple[str | None, str | None]:
        return item.template or item.prompt, item.negative_prompt


def prepare(inpainter: Inpainter, **fields: bytes) -> Planned | Fault:
    made = sample(0)
    settings = job("u", "o", "m", inpaint={"variants": 2}, seed=5)
    return Prepare(settings, inpainter, 8)(0, "k", {"image": made["png"], "mask": made["mask.png"], **fields})


def test_an_own_seed_takes_the_place_of_the_jobs() -> None:
    for content, seed in ((b"{}", 5), (of({"seed": 7}), 7), (of({"seed": 0}), 0)):
        planned = prepare(load_inpainter(InpaintSettings()), json=content)
        assert isinstance(planned, Planned)
        assert planned.seeds == [sample_seed(seed, "k", 0), sample_seed(seed, "k", 1)]
        assert [item.seed for item in planned.items] == planned.seeds


def test_prompts_reach_the_method_and_the_row() -> None:
    planned = prepare(Checked(), prompt=b"caf\xe9", json=of({"negative_prompt": "fog"}))
    assert isinstance(planned, Planned)
    assert (planned.prepared.prompt, planned.prepared.negative_prompt) == ("caf\N{REPLACEMENT CHARACTER}", "fog")
    assert [item.prompt for item in planned.items] == ["caf\N{REPLACEMENT CHARACTER}"] * 2
    planned = prepare(Checked(), json=of({"prompt": "a wall"}))
    assert isinstance(planned, Planned)
    assert planned.prepared.prompt == "a wall"


def test_what_the_method_objects_to_is_an_error_row() -> None:
    assert prepare(Checked()) == Fault("missing_prompt")
    assert isinstance(prepare(load_inpainter(InpaintSettings())), Planned)
