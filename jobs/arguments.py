"""A job's settings from its command line: YAML file, environment, flags; and errors that say what would do."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource

EXIT_CONFIGURATION = 2

S = TypeVar("S", bound=BaseSettings)


def fail(message: str) -> NoReturn:
    """The configuration is wrong, nothing was started: say so and exit with 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(EXIT_CONFIGURATION)


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, sections included."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from setting_names(info.annotation, f"{prefix}{name}.")


def _nearest(name: str, model: type[BaseModel], extra: Sequence[str] = ()) -> str:
    found = difflib.get_close_matches(name, [*setting_names(model), *extra], n=1, cutoff=0.4)
    return f"; did you mean {found[0]}?" if found else ""


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        fail(f"--config {path}: {error.strerror}")
    except yaml.YAMLError as error:
        fail(f"--config {path} is not YAML: {error}")
    if not isinstance(content, dict):
        fail(f"--config {path} must hold settings by name, such as 'input: {{urls: ...}}'")
    return content


def _whole_urls(arguments: Sequence[str]) -> list[str]:
    """``--input.urls URL`` as a JSON list: the settings source would split a URL at the commas of its braces."""
    out: list[str] = []
    for argument in arguments:
        whole = f"{out.pop()}={argument}" if out and out[-1] == "--input.urls" else argument
        name, equals, value = whole.partition("=")
        if name == "--input.urls" and equals and not value.startswith("["):
            whole = f"{name}={json.dumps([value])}"
        out.append(whole)
    return out


def parse(settings: type[S], flags: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[S, argparse.Namespace]:
    """Settings from ``--config`` and every ``--name.of.setting=value``; ``flags`` adds what is no setting.

    Exits with 2 on a wrong configuration (naming the setting and, for an unknown one, the nearest known) and with 0
    after ``--help``.
    """
    flags.add_argument(
        "--config", metavar="FILE", help="YAML file of settings; flags and ASYMVAE_* variables override it"
    )
    own = [option for action in flags._actions for option in action.option_strings]
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        settings, root_parser=flags, cli_avoid_json=True, cli_hide_none_type=True
    )
    for argument in arguments:
        name = argument.partition("=")[0]
        known = {*own, *(f"--{known}" for known in setting_names(settings))}
        if name.startswith("--") and name not in known:
            fail(f"unknown setting {name}" + _nearest(name.removeprefix("--"), settings, [o.lstrip("-") for o in own]))
    parsed = flags.parse_args(_whole_urls(arguments))
    given = source(parsed_args=parsed)
    file = _read_yaml(parsed.config) if parsed.config else {}
    try:
        return settings(_cli_settings_source=given, **file), parsed
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            hint = _nearest(name, settings) if problem["type"] == "extra_forbidden" else ""
            what = "unknown setting" if problem["type"] == "extra_forbidden" else problem["msg"]
            lines.append(f"  {name}: {what}{hint}")
        fail("the settings are wrong:\n" + "\n".join(lines))
