"""The keys of an experiment file and the words that they take, for shell completion, from a cache of this user."""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Values(NamedTuple):
    """What a key takes.

    Attributes:
        words: Its values that are words.
        listed: Whether it takes a list of them.
    """

    words: tuple[str, ...]
    listed: bool = False


Keys = Mapping[str, Values]
"""The keys by their dotted names. A section that takes a short form, such as ``search.scheduler=asha``, is one, too."""


def load_keys() -> Keys:
    """Loads the keys from a cache of this user. It is written when the settings have changed, which takes a second."""
    settings = Path(__file__).parents[1] / "config"
    newest = max(path.stat().st_mtime_ns for path in settings.glob("*.py"))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fednar"
    cache = folder / f"settings-{zlib.crc32(bytes(settings)):08x}-{newest}.json"
    with suppress(OSError, ValueError):
        kept = json.loads(cache.read_text(encoding="utf-8"))
        return {key: Values(tuple(values["words"]), values["listed"]) for key, values in kept.items()}
    keys = _list_keys()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{cache.name}.{os.getpid()}"
        unfinished.write_text(json.dumps({key: values._asdict() for key, values in keys.items()}), encoding="utf-8")
        unfinished.replace(cache)
    return keys


def _list_keys() -> Keys:
    """Lists the keys. Kinds of a section may share a key."""
    found: dict[str, Values] = {}
    for key, values in _iter_keys():
        words = (*found[key].words, *values.words) if key in found else values.words
        found[key] = Values(tuple(dict.fromkeys(words)), values.listed)
    return found


def _iter_keys() -> Iterator[tuple[str, Values]]:
    from fednar_ray.config.describe import list_sections

    for section in list_sections():
        if section.short_form:
            yield section.name, Values(section.short_form)
        for key in section.list_keys():
            words = ("true", "false") if key.values == "true, false" else re.findall("`([^`]+)`", key.values)
            yield key.name, Values(tuple(words), key.values.startswith("a list"))
