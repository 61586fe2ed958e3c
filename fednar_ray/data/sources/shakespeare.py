"""LEAF's next-character task on Shakespeare's plays: 80 characters in, one out; a speaking role is a client."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.config.data import ShakespeareSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.sources.source import Source

CHARACTERS = 80  # read for one that is predicted
ALPHABET = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's 80 characters; a token is a place in it. Any other character is read as a space."""
CROPPED_TRAIN, CROPPED_TEST = 2000, 400  # as FedNAR's authors do

SPACE = ALPHABET.index(" ")
TOKEN_OF = np.full(128, SPACE, dtype=np.uint8)
TOKEN_OF[[ord(character) for character in ALPHABET]] = np.arange(len(ALPHABET))

Tokens = npt.NDArray[np.uint8]
Speeches = Mapping[str, Sequence[str]]


def load_shakespeare(settings: ShakespeareSettings) -> Source:
    """The plays of William Shakespeare, in the public domain, as the task of Caldas et al., *LEAF*, 2018.

    Every character of a speech, and the end of it, is to be told from the 80 before it in the speech, which spaces
    precede. Tokens are uint8, and not normalized. ``data.path`` is one of

    - LEAF's directory with train/*.json and test/*.json, split as it is there;
    - a .json or .json.gz file {role: [speech, …]}, by itself or under ``roles``;
    - a text of plays (.txt, .txt.gz), see ``roles_of_text``.

    Of the last two, the last ``test_share`` of a role's examples are its test examples. Roles with fewer than
    ``min_characters`` are left out. ``crop`` takes the roles with more than 2,000 training and 400 test examples, and
    of each as many in a row from a place at random, as FedNAR's authors do.
    """
    path = Path(settings.path)
    roles = list(_leaf(path) if path.is_dir() else _spoken(path, settings.test_share))
    kept = [role for role in roles if role.examples >= settings.min_characters]
    if settings.crop:
        kept = [_cropped(role, i) for i, role in enumerate(kept) if role.fits_crop]
    if not kept:
        longest = max((role.examples for role in roles), default=0)
        raise DataError(f"{path}: none of {len(roles)} roles is long enough; the longest has {longest} characters")
    train, test = _examples(kept, "train"), _examples(kept, "test")
    if not len(test[1]):
        raise DataError(f"{path}: no role has test examples; raise data.test_share")
    if not len(train[1]):
        raise DataError(f"{path}: data.test_share leaves no training example; lower it")
    numbers = np.arange(len(kept))  # in the order of names, which as texts would outweigh the examples
    return Source(
        name="shakespeare",
        train_x=train[0],
        train_y=train[1],
        test_x=test[0],
        test_y=test[1],
        groups=np.repeat(numbers, [len(role.train) for role in kept]),
        test_groups=np.repeat(numbers, [len(role.test) for role in kept]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a role says; an example starts at each of its starts, and ends 80 tokens later with the one to predict."""

    name: str
    tokens: Tokens
    train: npt.NDArray[np.int64]  # starts
    test: npt.NDArray[np.int64]

    @property
    def examples(self) -> int:
        """One a character, and one an end of a speech."""
        return len(self.train) + len(self.test)

    @property
    def fits_crop(self) -> bool:
        """Is there enough to crop?"""
        return len(self.train) > CROPPED_TRAIN and len(self.test) > CROPPED_TEST


def tokens_of(text: str) -> Tokens:
    """A token a character."""
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    return TOKEN_OF[np.where(codes < len(TOKEN_OF), codes, ord(" "))]


def _cropped(role: Role, index: int) -> Role:
    """The same stretch of a role in every run."""
    rng = generator(0, Purpose.CROPPING, client_id=index)
    first, second = rng.integers(len(role.train) - CROPPED_TRAIN), rng.integers(len(role.test) - CROPPED_TEST)
    train, test = role.train[first : first + CROPPED_TRAIN], role.test[second : second + CROPPED_TEST]
    return replace(role, train=train, test=test)


def _examples(roles: Sequence[Role], part: str) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """x [Σ n_i, 80] and y of all roles, filled role by role: windows exist once."""
    starts = [getattr(role, part) for role in roles]
    total = sum(map(len, starts))
    x, y, end = np.empty((total, CHARACTERS), dtype=np.uint8), np.empty(total, dtype=np.int64), 0
    for role, own in zip(roles, starts, strict=True):
        rows = slice(end, end + len(own))
        x[rows] = np.lib.stride_tricks.sliding_window_view(role.tokens, CHARACTERS)[own]
        y[rows] = role.tokens[own + CHARACTERS]
        end = rows.stop
    return x, y


# ——— speeches ———


def _spoken(path: Path, test_share: float) -> Iterator[Role]:
    spoken = _roles_of_json(path) if ".json" in path.suffixes else roles_of_text(_text(path), path)
    for name in sorted(spoken):
        if any(spoken[name]):
            yield _role(name, spoken[name], test_share)


def _role(name: str, speeches: Sequence[str], test_share: float) -> Role:
    lines = [tokens_of(re.sub(" {2,}", " ", speech) + "\n") for speech in speeches if speech]
    before = np.full(CHARACTERS, SPACE, dtype=np.uint8)
    tokens = np.concatenate([part for line in lines for part in (before, line)])
    lengths = np.array([len(line) for line in lines])
    begins = np.cumsum(CHARACTERS + lengths) - CHARACTERS - lengths
    starts = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    cut = len(starts) - round(test_share * len(starts))
    return Role(name=name, tokens=tokens, train=starts[:cut], test=starts[cut:])


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged, or no JSON: {error}") from None


def _roles_of_json(path: Path) -> Speeches:
    found = _json(path)
    roles = found["roles"] if isinstance(found, dict) and isinstance(found.get("roles"), dict) else found
    if not isinstance(roles, dict) or not roles:
        raise DataError(f"{path}: is not an object {{role: [speech, …]}}")
    for name, speeches in roles.items():
        if not isinstance(speeches, list) or not all(isinstance(speech, str) for speech in speeches):
            raise DataError(f"{path}: {name}: a list of speeches is needed")
    return roles


AUTHOR = re.compile(r"by William Shakespeare$", re.IGNORECASE)
HEADING = re.compile(r"([A-Z][A-Za-z'\- ]{0,39})[.:]$")
INDENTED, CONTINUED = re.compile(r"  ([A-Za-z][A-Za-z ]*)\. (.*)"), re.compile(r"    (.*)")


def roles_of_text(text: str, path: Path) -> Speeches:
    """Speeches by role from a text of plays, in one of two forms.

    A line ``NAME:`` or ``NAME.`` after an empty one, and the speech down to the next empty line; or, as in Project
    Gutenberg's edition of 1994, ``  Name. Speech`` with lines indented by four that go on. A line ``by William
    Shakespeare`` begins a play, called by the last line before it: a role is ``PLAY/NAME``, else ``NAME``.
    """
    play, name, before, last = "", None, "", ""  # the line before, and the last one that says something
    spoken: dict[str, list[list[str]]] = {}
    for line in map(str.rstrip, text.splitlines()):
        headed, indented = None if before else HEADING.match(line), INDENTED.match(line)
        goes_on = CONTINUED.match(line)
        if AUTHOR.match(line.strip()):
            play, name = f"{last.strip()}/", None
        elif headed or indented:
            name = play + (headed or indented)[1].upper()  # type: ignore[index]
            spoken.setdefault(name, []).append([indented[2]] if indented else [])
        elif not line:
            name = None
        elif name is not None:
            spoken[name][-1].append(goes_on[1] if goes_on else line.strip())
        before, last = line, line or last
    if not spoken:
        raise DataError(f"{path}: holds no speech; one begins with a line NAME: or NAME. after an empty line")
    return {name: [" ".join(lines) for lines in speeches] for name, speeches in spoken.items()}


# ——— LEAF's files ———


def _leaf(directory: Path) -> Iterator[Role]:
    train, test = (_users(directory / part) for part in ("train", "test"))
    for name in sorted(train):
        parts = [train[name], test.get(name, train[name][:0])]
        starts = np.arange(sum(map(len, parts))) * (CHARACTERS + 1)
        yield Role(
            name=name,
            tokens=np.concatenate(parts).reshape(-1),
            train=starts[: len(parts[0])],
            test=starts[len(parts[0]) :],
        )


def _users(directory: Path) -> dict[str, Tokens]:
    """Each user's examples [n, 81]: 80 characters, and the one to predict."""
    files = sorted(directory.glob("*.json"))
    if not files:
        raise DataError(f"{directory}: holds no .json file; LEAF's directory has train/*.json and test/*.json")
    users: dict[str, Tokens] = {}
    for path in files:
        found = _json(path)
        data = found.get("user_data") if isinstance(found, dict) else None
        if not isinstance(data, dict):
            raise DataError(f"{path}: has no user_data; it is no file of LEAF's")
        for name, examples in data.items():
            if name in users:
                raise DataError(f"{path}: {name} is in an earlier file too")
            users[name] = _user(examples, f"{path}: {name}")
    return users


def _user(examples: Any, place: str) -> Tokens:
    try:
        x, y = examples["x"], examples["y"]
        wrong = len(x) != len(y) or any(len(a) != CHARACTERS or len(b) != 1 for a, b in zip(x, y, strict=True))
        text = "".join(part for pair in zip(x, y, strict=True) for part in pair)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place}: x and y are not as many texts each: {error!r}") from None
    if wrong:
        raise DataError(f"{place}: an example is {CHARACTERS} characters in x and one in y")
    return tokens_of(text).reshape(-1, CHARACTERS + 1)
