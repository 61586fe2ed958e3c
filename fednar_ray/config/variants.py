"""Sections that come in several kinds, each with its own settings.

Data sources, models, algorithms and schedulers are discriminated unions of settings classes. Pydantic picks the class
by the key that names the kind. ``Variants`` adds a default kind, ``null`` as another way to leave a key out, and
messages that say which kinds read a key.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidatorFunctionWrapHandler
from pydantic_core import InitErrorDetails, ValidationError

from fednar_ray.config import problems
from fednar_ray.config.base import Settings
from fednar_ray.core.errors import format_value


class Variants:
    """The kinds of one section.

    Args:
        union: The settings classes, as ``A | B | C``.
        base: Their base class, with the settings that every kind reads.
        key: The key that names the kind: ``source`` or ``name``. Each class has it as a ``Literal`` of its names, or as
            ``None`` where another key stands in for a name.
        default: The kind, if the section names none.
        meaning: What the key chooses.
        example: The name of a kind, as an example.
        stand_ins: Keys that replace the name, such as ``function``, the path of a user's own function.
        short: Whether a bare name can stand for a section with only that name.
        prepare: Completes the given values before the kind is determined.
    """

    def __init__(
        self,
        union: Any,
        base: type[Settings],
        key: str,
        default: str,
        meaning: str,
        example: str,
        stand_ins: tuple[str, ...] = (),
        short: bool = False,
        prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        self.base, self.key, self.default, self.stand_ins, self.meaning = base, key, default, stand_ins, meaning
        self.example, self.short, self._prepare = example, short, prepare
        self.by_name: Mapping[str, type[Settings]] = {
            name: kind for kind in get_args(union) for name in self._list_names(kind)
        }

    def _list_names(self, kind: type[Settings]) -> tuple[str, ...]:
        names: tuple[str, ...] = get_args(kind.model_fields[self.key].annotation)
        return names or tuple(name for name in self.stand_ins if name in kind.model_fields)

    def list_settings(self, name: str) -> dict[str, Any]:
        """Lists the settings that only some kinds read, for one kind, with their defaults; None for a required one."""
        common = {self.key, *self.base.model_fields}
        own = {key: field for key, field in self.by_name[name].model_fields.items() if key not in common}
        return {key: None if field.is_required() else field.default for key, field in own.items()}

    def build_table(self) -> dict[str, dict[str, Any]]:
        """Builds the table from each kind that has a name to its ``list_settings``."""
        return {name: self.list_settings(name) for name in self.by_name if name not in self.stand_ins}

    def find_tag(self, values: Any) -> str:
        """Returns the stand-in that a section has, otherwise the key that names its kind: pydantic's discriminator."""
        given = values if isinstance(values, Mapping) else dict(values)  # else an instance of a kind
        return next((key for key in self.stand_ins if given.get(key) is not None), self.key)

    def describe(self, section: Settings) -> str:
        """Returns the name of a validated section's kind, or what stands in for it: the path of a user's function."""
        given = dict(section)
        return next(str(given[key]) for key in (self.key, *self.stand_ins) if given.get(key) is not None)

    def validate(self, values: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Wraps pydantic's validation of the union.

        Raises:
            ValidationError: pydantic's error, reworded by ``problems`` and without the union's tags in its places.
        """
        if isinstance(values, self.base):
            return handler(values)
        if self.short and isinstance(values, str):
            values = {self.key: values}
        if not isinstance(values, Mapping):
            raise self._build_error([problems.build_problem((), values, "should be a mapping of settings")])
        given = self._prepare({key: value for key, value in values.items() if value is not None})
        named = [key for key in (self.key, *self.stand_ins) if key in given]
        if not named:
            given, named = {self.key: self.default, **given}, [self.key]
        if len(named) > 1:
            each = " and ".join(f"{key} ({format_value(given[key])})" for key in named)
            raise self._build_error(
                [problems.build_problem((), values, f"set only one of {each}; null unsets the others")]
            )
        name = given[self.key] if named == [self.key] else named[0]
        if not isinstance(name, str) or name not in self.by_name or (name == named[0]) != (name in self.stand_ins):
            raise self._build_error([self._build_unknown_problem(name), *self._find_base_problems(given)])
        kind = self.by_name[name]
        given = {
            key: value
            for key, value in given.items()
            if value != {} or key in kind.model_fields or not self._find_readers(key)  # an empty mapping sets nothing
        }
        try:
            return handler(given)
        except ValidationError as error:
            raise self._build_error(list(self._reword(error, name))) from None

    def _build_error(self, details: list[InitErrorDetails]) -> ValidationError:
        return ValidationError.from_exception_data(self.base.__name__, details)

    def _build_unknown_problem(self, name: Any) -> InitErrorDetails:
        *before, last = (repr(known) for known in self.by_name if known not in self.stand_ins)
        return problems.build_problem((self.key,), name, f"should be {', '.join(before)} or {last}")

    def _find_base_problems(self, given: Mapping[str, Any]) -> list[InitErrorDetails]:
        """Returns what is wrong with the settings that every kind reads."""
        try:
            self.base.model_validate({key: value for key, value in given.items() if key in self.base.model_fields})
        except ValidationError as error:
            return problems.convert_errors(error.errors(include_url=False), self.base)
        return []

    def _find_readers(self, key: str) -> list[str]:
        """Returns the kinds that read a key which not every kind reads."""
        return [name for name in self.by_name if key in self.list_settings(name)]

    def _reword(self, error: ValidationError, name: str) -> Iterator[InitErrorDetails]:
        kind = self.by_name[name]
        tags = 2 if self.stand_ins and name not in self.stand_ins else 1
        rest, unread, needed = [], [], []
        for entry in error.errors(include_url=False)[: problems.LIMIT_PROBLEMS]:
            entry["loc"] = place = entry["loc"][tags:]
            key = str(place[0]) if len(place) == 1 else ""
            readers = ", ".join(self._find_readers(key))
            if entry["type"] == "extra_forbidden" and readers:
                unread.append((key, f"{name} does not read {key}: it belongs to {readers}"))
            elif entry["type"] == "missing" and key:
                needed.append(f"{name} needs {key}")
            else:
                rest.append(entry)
        if unread or needed:
            yield problems.build_problem((), {}, "; ".join([*(text for _, text in sorted(unread)), *sorted(needed)]))
        yield from problems.convert_errors(rest, kind)
