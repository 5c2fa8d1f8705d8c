"""A job's settings from its command line: YAML file, environment, flags; and errors that say what would do."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

EXIT_CONFIGURATION = 2
NO_SETTINGS = {"ASYMVAE_CACHE"}  # variables of ours that say something of a machine, not of a job

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


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean ...?"``, or nothing where no known name is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {found[0]}?" if found else ""


def read_yaml(flag: str, path: str) -> Any:
    """What the file that a flag names holds. Exits with 2 where it can't be read, or isn't YAML."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"{flag} {path}: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{flag} {path} is not YAML: {error}")


def _read_settings(path: str) -> dict[str, Any]:
    content = read_yaml("--config", path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        fail(f"--config {path} must hold settings by name, such as 'input: {{urls: ...}}'")
    return content


def parse(settings: type[S], flags: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[S, argparse.Namespace]:
    """Settings from ``--config`` and every ``--name.of.setting=value``; ``flags`` adds what is no setting.

    Exits with 2 on a wrong configuration (naming the setting and, for an unknown one, the nearest known) and with 0
    after ``--help``.
    """
    flags.allow_abbrev = False  # a new setting must not change what an old command line means
    flags.add_argument(
        "--config", metavar="FILE", help="YAML file of settings; flags and ASYMVAE_* variables override it"
    )
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        settings, root_parser=flags, cli_avoid_json=True, cli_hide_none_type=True
    )
    parsed, unknown = flags.parse_known_args(arguments)
    names = list(setting_names(settings))
    if unknown:
        _fail_for_unknown(unknown[0], [*names, *(name.replace("_", "-") for name in vars(parsed) if name not in names)])
    _check_environment(settings, names)
    for name, value in vars(parsed).items():
        if isinstance(value, list) and len(value) > 1:  # a flag given several times
            setattr(parsed, name, [json.dumps(value)])
    file = _read_settings(parsed.config) if parsed.config else {}
    try:
        return settings(_cli_settings_source=source(parsed_args=parsed), **file), parsed
    except ValidationError as error:
        fail("the settings are wrong:\n" + "\n".join(_problem(each, settings, names) for each in error.errors()))
    except SettingsError as error:
        cause = str(error.__cause__ or "")
        fail(f"the settings are wrong:\n  {error}" + (f" ({cause})" if cause not in str(error) else ""))


def _fail_for_unknown(argument: str, known: Iterable[str]) -> NoReturn:
    if not argument.startswith("-"):
        fail(f"unexpected argument {argument!r}: settings are given as --name=value, a file of them as --config FILE")
    name = argument.partition("=")[0]
    fail(f"unknown setting {name}" + nearest(name.lstrip("-"), known))


def _check_environment(settings: type[BaseSettings], names: Sequence[str]) -> None:
    """A misspelt variable is an error like a misspelt flag; the settings source would pass over it in silence."""
    prefix = settings.model_config.get("env_prefix", "")
    delimiter = settings.model_config.get("env_nested_delimiter") or "__"
    known = {prefix + name.upper().replace(".", delimiter) for name in names} | NO_SETTINGS
    for variable in sorted(os.environ):
        upper = variable.upper()
        if upper.startswith(prefix) and upper not in known:
            fail(f"unknown environment variable {variable}" + nearest(upper, known))


def _problem(problem: ErrorDetails, settings: type[BaseModel], names: Sequence[str]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"  {name}: unknown setting{nearest(name, names)}"
    if problem["type"] == "missing":
        wanted = [n for n in _required(settings) if n == name or n.startswith(f"{name}.")]
        return f"  {', '.join(wanted) or name}: must be set"
    return f"  {name}: {problem['msg']}" if name else f"  {problem['msg']}"


def _required(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings without a default."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _required(info.annotation, f"{prefix}{name}.")
        elif info.is_required():
            yield prefix + name
