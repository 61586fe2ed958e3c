"""Reads YAML, and JSON as a part of it, as plain values, and writes it.

PyYAML follows YAML 1.1, which reads ``1e-3`` as text, ``010`` as eight and ``1:30`` as ninety. Here they are a number,
ten and text, as in YAML 1.2. Size, depth, aliases and the length of numbers are limited, so that any text is refused
quickly.
"""

import re
from typing import Any

import yaml

from fednar_ray.core.errors import format_text

LIMIT_CHARACTERS = 2_000_000
LIMIT_ALIASED_CHARACTERS = 100_000
"""Maximum number of characters by which a text may grow when its aliases are expanded."""
LIMIT_DEPTH = 50
LIMIT_NUMBER_CHARACTERS = 400
FLOAT = re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)\Z")
"""Numbers of YAML 1.2 and ``float`` that YAML 1.1 reads as text: 1e-3, 1E5, -.5, 1.5e3."""
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+\Z")
_FLOAT_TAG, _INT_TAG, _TEXT_TAG = (f"tag:yaml.org,2002:{name}" for name in ("float", "int", "str"))
_NUMBERS = (_FLOAT_TAG, _INT_TAG, "tag:yaml.org,2002:timestamp")
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)  # an impossible date or number is a ValueError


class NotYaml(ValueError):
    """A text is not valid YAML, or exceeds a limit.

    Attributes:
        reason: What is wrong.
        place: The line and column; empty if unknown.
    """

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason, place)
        self.reason, self.place = reason, place


class _Loader(yaml.SafeLoader):
    """Loads plain values only. A key that is given twice is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._read = self._aliased = 0  # characters read, with expanded aliases, plus one per node
        self._sizes: dict[int, int] = {}  # id of a node → its characters

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            return self._count_alias(super().compose_node(parent, index), mark)
        before = self._read
        self._depth += 1
        if self._depth > LIMIT_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {LIMIT_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        length = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if node.tag in _NUMBERS and length > LIMIT_NUMBER_CHARACTERS:
            raise yaml.composer.ComposerError(None, None, f"a number of {length} characters", mark)
        if isinstance(node, yaml.ScalarNode):
            _read_as_yaml_1_2(node)
        self._read += 1 + length
        self._sizes[id(node)] = self._read - before
        return node

    def _count_alias(self, node: Any, mark: Any) -> Any:
        """Counts the expanded alias, and returns its node. Raises ComposerError if aliases expand too much."""
        size = self._sizes.get(id(node))
        if size is None:
            raise yaml.composer.ComposerError(None, None, "an alias refers to a value that contains it", mark)
        self._read += size
        self._aliased += size
        if self._aliased > LIMIT_ALIASED_CHARACTERS:
            problem = f"aliases expand to more than {LIMIT_ALIASED_CHARACTERS} characters"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # not a valid key; PyYAML raises the error
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"{format_text(key)} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_as_yaml_1_2(node: yaml.ScalarNode) -> None:
    """Turns a number in base 60 into text, and a number with a leading zero into a decimal one."""
    if node.tag in (_INT_TAG, _FLOAT_TAG) and ":" in node.value:
        node.tag = _TEXT_TAG
    elif node.tag == _INT_TAG and LEADING_ZERO.match(node.value):
        node.value = str(int(node.value))


class _Dumper(yaml.SafeDumper):
    """Writes values so that ``_Loader`` reads the same values back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for each in (_Loader, _Dumper):
    each.add_implicit_resolver(_FLOAT_TAG, FLOAT, list("-+.0123456789"))


def parse(text: str) -> Any:
    """Parses a text. Raises NotYaml if it is not valid YAML or exceeds a limit."""
    if len(text) > LIMIT_CHARACTERS:
        raise NotYaml(f"it has more than the maximum of {LIMIT_CHARACTERS} characters")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except _UNREADABLE as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = " ".join(str(problem or error).split())
    raise NotYaml(format_text(reason), place)


def write(value: Any) -> str:
    """Returns a value as YAML text with its keys in order. ``parse`` reads it back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)
