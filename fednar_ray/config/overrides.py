"""Sets ``key=value`` overrides, as on the command line, in the sections of an experiment file."""

from typing import Any

from fednar_ray.config import yaml_text
from fednar_ray.config.dotted_keys import SECTIONS, set_value
from fednar_ray.core.credentials import describe_secret, find_secret
from fednar_ray.core.errors import ConfigError, format_text, format_value


def apply_override(raw: dict[str, Any], override: str) -> list[str]:
    """Sets one ``key=value`` in ``raw``, and returns what is wrong with it. Raises ConfigError for a secret."""
    path, equals, text = override.partition("=")
    found = find_secret(override)
    if found is not None:
        raise ConfigError(
            (describe_secret("an override" if find_secret(path) or "://" in path else format_text(path), found),)
        )
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > yaml_text.LIMIT_DEPTH:
        return [f"{format_text(override.strip())}: should be key=value, such as federation.rounds=5"]
    try:
        value = yaml_text.parse(text)
    except yaml_text.NotYaml as error:
        return [f"{format_text(path)}: {format_value(text)}: the value is not YAML: {error.reason}"]
    if keys[0] not in SECTIONS:
        keys = ["experiment", *keys]
    if keys[0] == "search" and keys[1:2] in (["space"], ["baseline"]) and len(keys) > 2:
        keys = [*keys[:2], ".".join(keys[2:])]  # a searched key is one key, although it contains dots
    return set_value(raw, keys, value)
