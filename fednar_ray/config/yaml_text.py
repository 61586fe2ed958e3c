"""YAML, of which JSON is a part, to plain values and back.

PyYAML follows YAML 1.1, to which ``1e-3`` is text, ``010`` is eight and ``1:30`` is ninety; here they are a number, ten
and text, as in YAML 1.2.  What a text may
expand to is bounded, so that no text takes long to refuse: aliases, depth, size, and the length of a number.
"""

import re
from typing import Any

import yaml

from fednar_ray.core.errors import format_text

LIMIT_CHARACTERS = 2_000_000
LIMIT_ALIASED_CHARACTERS = 100_000
"""The most that aliases may add to a text, were each replaced by what it stands for."""
LIMIT_DEPTH = 50
LIMIT_NUMBER_CHARACTERS = 400
FLOAT = re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)\Z")
"""What YAML 1.1 misses of the numbers that YAML 1.2 and ``float`` know: 1e-3, 1E5, -.5, 1.5e3."""
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+\Z")
_FLOAT_TAG, _INT_TAG, _TEXT_TAG = (f"tag:yaml.org,2002:{name}" for name in ("float", "int", "str"))
_NUMBERS = (_FLOAT_TAG, _INT_TAG, "tag:yaml.org,2002:timestamp")
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)  # an impossible date or number is a ValueError


class NotYaml(ValueError):
    """A text that cannot be read: ``place`` (empty where it is not known) and ``reason``."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason, place)
        self.reason, self.place = reason, place


class _Loader(yaml.SafeLoader):
    """Plain values only; a key given twice is an error, not a silent choice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._read = self._aliased = 0  # characters, each node counted as one more; with what aliases stand for
        self._sizes: dict[int, int] = {}  # by identity of a node

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            return self._alias(super().compose_node(parent, index), mark)
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

    def _alias(self, node: Any, mark: Any) -> Any:
        """The node again, if all aliases together do not grow too much."""
        size = self._sizes.get(id(node))
        if size is None:
            raise yaml.composer.ComposerError(None, None, "an alias stands within what it stands for", mark)
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
                continue  # no key: PyYAML says so
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"{format_text(key)} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_as_yaml_1_2(node: yaml.ScalarNode) -> None:
    """Base 60 becomes text, and a number with a leading zero decimal."""
    if node.tag in (_INT_TAG, _FLOAT_TAG) and ":" in node.value:
        node.tag = _TEXT_TAG
    elif node.tag == _INT_TAG and LEADING_ZERO.match(node.value):
        node.value = str(int(node.value))


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for each in (_Loader, _Dumper):
    each.add_implicit_resolver(_FLOAT_TAG, FLOAT, list("-+.0123456789"))


def parse(text: str) -> Any:
    """The value that a text stands for. Raises NotYaml."""
    if len(text) > LIMIT_CHARACTERS:
        raise NotYaml(f"it has more than {LIMIT_CHARACTERS} characters, the most that is read")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except _UNREADABLE as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = " ".join(str(problem or error).split())
    raise NotYaml(format_text(reason), place)


def write(value: Any) -> str:
    """A value as YAML that ``parse`` reads back as the same value, in the order of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)
