"""LEAF's next-character task on Shakespeare's plays: 80 characters predict the next one. Each role is a client."""

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

CHARACTERS = 80  # the length of an input
ALPHABET = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's 80 characters. A token is the index of a character; any other character is read as a space."""
CROPPED_TRAIN, CROPPED_TEST = 2000, 400  # examples per role, as in the code of FedNAR's authors

SPACE = ALPHABET.index(" ")
TOKEN_OF = np.full(128, SPACE, dtype=np.uint8)
TOKEN_OF[[ord(character) for character in ALPHABET]] = np.arange(len(ALPHABET))

Tokens = npt.NDArray[np.uint8]
Speeches = Mapping[str, Sequence[str]]


def load_shakespeare(settings: ShakespeareSettings) -> Source:
    """Loads the plays of William Shakespeare, which are in the public domain, as a next-character task.

    The model predicts each character of a speech, and the line break that ends it, from the 80 characters before it.
    Spaces fill the input at the start of a speech. Tokens are uint8 and are not normalized. ``data.path`` is one of

    - LEAF's directory with train/*.json and test/*.json, whose split is kept;
    - a .json or .json.gz file {role: [speech, …]}, or such an object under the key ``roles``;
    - a text of plays (.txt, .txt.gz), in a form that ``parse_plays`` reads.

    In the last two cases, the last ``test_share`` of a role's examples are its test examples. Roles with fewer than
    ``min_characters`` examples are left out. ``crop`` keeps only roles with more than 2,000 training and 400 test
    examples, and of each as many successive examples from a random position, as FedNAR's authors do.

    Raises:
        DataError: A file cannot be read, or no examples are left for training or testing.

    Source: Caldas et al., *LEAF: A Benchmark for Federated Settings*, 2018.
    """
    path = Path(settings.path)
    roles = list(_read_leaf(path) if path.is_dir() else _read_speeches(path, settings.test_share))
    kept = [role for role in roles if role.examples >= settings.min_characters]
    if settings.crop:
        kept = [_crop(role, i) for i, role in enumerate(kept) if role.fits_crop]
    if not kept:
        longest = max((role.examples for role in roles), default=0)
        raise DataError(f"{path}: none of {len(roles)} roles is long enough; the longest has {longest} characters")
    train, test = _build_examples(kept, "train"), _build_examples(kept, "test")
    if not len(test[1]):
        raise DataError(f"{path}: no role has test examples; raise data.test_share")
    if not len(train[1]):
        raise DataError(f"{path}: data.test_share leaves no training example; lower it")
    numbers = np.arange(len(kept))  # instead of the roles' names, which would take more memory than the examples
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
    """The speeches of a role as one sequence of tokens.

    An example is given by its start: 80 tokens from there are the input, and the next one is the label.
    """

    name: str
    tokens: Tokens
    train: npt.NDArray[np.int64]  # starts of the training examples
    test: npt.NDArray[np.int64]  # starts of the test examples

    @property
    def examples(self) -> int:
        """The number of examples: one per character and one per end of a speech."""
        return len(self.train) + len(self.test)

    @property
    def fits_crop(self) -> bool:
        """Whether the role has enough examples for ``crop``."""
        return len(self.train) > CROPPED_TRAIN and len(self.test) > CROPPED_TEST


def tokenize(text: str) -> Tokens:
    """Converts a text to tokens, one per character."""
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    return TOKEN_OF[np.where(codes < len(TOKEN_OF), codes, ord(" "))]


def _crop(role: Role, index: int) -> Role:
    """Selects successive examples of a role from a random position, the same in every run."""
    rng = generator(0, Purpose.CROPPING, client_id=index)
    first, second = rng.integers(len(role.train) - CROPPED_TRAIN), rng.integers(len(role.test) - CROPPED_TEST)
    train, test = role.train[first : first + CROPPED_TRAIN], role.test[second : second + CROPPED_TEST]
    return replace(role, train=train, test=test)


def _build_examples(roles: Sequence[Role], part: str) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Builds x [Σ n_i, 80] and y of all roles, role by role, so that the windows are never copied twice."""
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


def _read_speeches(path: Path, test_share: float) -> Iterator[Role]:
    """Reads the roles of a .json file or of a text of plays, in the order of their names."""
    speeches = _read_json_roles(path) if ".json" in path.suffixes else parse_plays(_read_file(path), path)
    for name in sorted(speeches):
        if any(speeches[name]):
            yield _build_role(name, speeches[name], test_share)


def _build_role(name: str, speeches: Sequence[str], test_share: float) -> Role:
    """Builds a role whose last examples are its test set. 80 spaces precede each speech."""
    lines = [tokenize(re.sub(" {2,}", " ", speech) + "\n") for speech in speeches if speech]
    before = np.full(CHARACTERS, SPACE, dtype=np.uint8)
    tokens = np.concatenate([part for line in lines for part in (before, line)])
    lengths = np.array([len(line) for line in lines])
    first_starts = np.cumsum(CHARACTERS + lengths) - CHARACTERS - lengths
    starts = np.repeat(first_starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    cut = len(starts) - round(test_share * len(starts))
    return Role(name=name, tokens=tokens, train=starts[:cut], test=starts[cut:])


def _read_file(path: Path) -> str:
    """Reads a text, which may be compressed with gzip. Raises DataError."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_file(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged, or is not JSON: {error}") from None


def _read_json_roles(path: Path) -> Speeches:
    found = _read_json(path)
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


def parse_plays(text: str, path: Path) -> Speeches:
    """Parses a text of plays into the speeches of each role.

    A speech has one of two forms:

    - a line ``NAME:`` or ``NAME.`` after an empty line, then the speech up to the next empty line;
    - as in Project Gutenberg's edition of 1994, a line ``  Name. Speech``, continued by lines indented by four spaces.

    A line ``by William Shakespeare`` starts a play, and the last line of text before it is the play's title.

    Args:
        text: The text.
        path: The file that it comes from, for messages.

    Returns:
        The speeches by role. A role is called ``PLAY/NAME``, or ``NAME`` if the text names no play.

    Raises:
        DataError: There is no speech.
    """
    play, name, before, last = "", None, "", ""  # before: the previous line; last: the previous line with text
    roles: dict[str, list[list[str]]] = {}
    for line in map(str.rstrip, text.splitlines()):
        headed, indented = None if before else HEADING.match(line), INDENTED.match(line)
        continuation = CONTINUED.match(line)
        if AUTHOR.match(line.strip()):
            play, name = f"{last.strip()}/", None
        elif headed or indented:
            name = play + (headed or indented)[1].upper()  # type: ignore[index]
            roles.setdefault(name, []).append([indented[2]] if indented else [])
        elif not line:
            name = None
        elif name is not None:
            roles[name][-1].append(continuation[1] if continuation else line.strip())
        before, last = line, line or last
    if not roles:
        raise DataError(f"{path}: holds no speech; a speech starts with a line NAME: or NAME. after an empty line")
    return {name: [" ".join(lines) for lines in speeches] for name, speeches in roles.items()}


# ——— LEAF's files ———


def _read_leaf(directory: Path) -> Iterator[Role]:
    """Reads the roles of LEAF's directory, in the order of their names."""
    train, test = (_read_users(directory / part) for part in ("train", "test"))
    for name in sorted(train):
        parts = [train[name], test.get(name, train[name][:0])]
        starts = np.arange(sum(map(len, parts))) * (CHARACTERS + 1)
        yield Role(
            name=name,
            tokens=np.concatenate(parts).reshape(-1),
            train=starts[: len(parts[0])],
            test=starts[len(parts[0]) :],
        )


def _read_users(directory: Path) -> dict[str, Tokens]:
    """Reads each user's examples, [n, 81]: the 80 tokens of the input and the label."""
    files = sorted(directory.glob("*.json"))
    if not files:
        raise DataError(f"{directory}: holds no .json file; LEAF's directory has train/*.json and test/*.json")
    users: dict[str, Tokens] = {}
    for path in files:
        found = _read_json(path)
        data = found.get("user_data") if isinstance(found, dict) else None
        if not isinstance(data, dict):
            raise DataError(f"{path}: has no user_data, so it is not a file of LEAF")
        for name, examples in data.items():
            if name in users:
                raise DataError(f"{path}: {name} is also in an earlier file")
            users[name] = _parse_user(examples, f"{path}: {name}")
    return users


def _parse_user(examples: Any, place: str) -> Tokens:
    try:
        x, y = examples["x"], examples["y"]
        wrong = len(x) != len(y) or any(len(a) != CHARACTERS or len(b) != 1 for a, b in zip(x, y, strict=True))
        text = "".join(part for pair in zip(x, y, strict=True) for part in pair)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place}: x and y are not lists of equally many texts: {error!r}") from None
    if wrong:
        raise DataError(f"{place}: an example needs {CHARACTERS} characters in x and one in y")
    return tokenize(text).reshape(-1, CHARACTERS + 1)
