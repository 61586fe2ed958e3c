"""Sections that come in several kinds, each with settings of its own.

A data source, a model, a preset and a scheduler are each a discriminated union of settings classes. Pydantic picks
the class by the key that names the kind; ``Variants`` adds what a file needs beyond that: a default kind, ``null`` as
another way to leave a key out, and messages that say which kinds read a key.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidatorFunctionWrapHandler
from pydantic_core import InitErrorDetails, ValidationError

from fednar_ray.config import problems
from fednar_ray.config.base import Settings
from fednar_ray.core.errors import shown


class Variants:
    """The kinds of one section.

    Args:
        union: The settings classes, as ``A | B | C``.
        base: Their base class, with the settings that every kind reads.
        key: The key that names the kind: ``source`` or ``name``. Each class has it as a ``Literal`` of its names, or as
            ``None`` where another key stands in for a name.
        default: The kind where the section names none.
        stand_ins: Keys that say what is meant without a name: ``function``, the path of the user's own.
        short: Whether a bare name may stand for a section with nothing but that name.
        prepare: Completes what was given before the kind is looked at.
    """

    def __init__(
        self,
        union: Any,
        base: type[Settings],
        key: str,
        default: str,
        stand_ins: tuple[str, ...] = (),
        short: bool = False,
        prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        self.base, self.key, self.default, self.stand_ins = base, key, default, stand_ins
        self._short, self._prepare = short, prepare
        self.by_name: Mapping[str, type[Settings]] = {
            name: kind for kind in get_args(union) for name in self._names_of(kind)
        }

    def _names_of(self, kind: type[Settings]) -> tuple[str, ...]:
        names: tuple[str, ...] = get_args(kind.model_fields[self.key].annotation)
        return names or tuple(name for name in self.stand_ins if name in kind.model_fields)

    def settings_of(self, name: str) -> dict[str, Any]:
        """The settings that a kind reads beyond those of every kind, with their defaults; None where there is none."""
        common = {self.key, *self.base.model_fields}
        own = {key: field for key, field in self.by_name[name].model_fields.items() if key not in common}
        return {key: None if field.is_required() else field.default for key, field in own.items()}

    def table(self) -> dict[str, dict[str, Any]]:
        """``settings_of`` every kind that has a name."""
        return {name: self.settings_of(name) for name in self.by_name if name not in self.stand_ins}

    def find_tag(self, values: Any) -> str:
        """The stand-in that a section has, else the key that names its kind: pydantic's discriminator."""
        given = values if isinstance(values, Mapping) else dict(values)  # else an instance of a kind
        return next((key for key in self.stand_ins if given.get(key) is not None), self.key)

    def validate(self, values: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Wraps pydantic's validation of the union.

        Raises:
            ValidationError: As pydantic raises it, in the words of ``problems``. Places are without the union's tags.
        """
        if isinstance(values, self.base):
            return handler(values)
        if self._short and isinstance(values, str):
            values = {self.key: values}
        if not isinstance(values, Mapping):
            raise self._error([problems.problem((), values, "should be a mapping of settings")])
        given = self._prepare({key: value for key, value in values.items() if value is not None})
        named = [key for key in (self.key, *self.stand_ins) if key in given]
        if not named:
            given, named = {self.key: self.default, **given}, [self.key]
        if len(named) > 1:
            each = " and ".join(f"{key} ({shown(given[key])})" for key in named)
            raise self._error([problems.problem((), values, f"set only one of {each}; null unsets the others")])
        name = given[self.key] if named == [self.key] else named[0]
        if not isinstance(name, str) or name not in self.by_name or (name == named[0]) != (name in self.stand_ins):
            raise self._error([self._unknown(name), *self._problems_of_base(given)])
        kind = self.by_name[name]
        given = {
            key: value
            for key, value in given.items()
            if value != {} or key in kind.model_fields or not self._readers(key)  # nothing is not too much
        }
        try:
            return handler(given)
        except ValidationError as error:
            raise self._error(list(self._reworded(error, name))) from None

    def _error(self, details: list[InitErrorDetails]) -> ValidationError:
        return ValidationError.from_exception_data(self.base.__name__, details)

    def _unknown(self, name: Any) -> InitErrorDetails:
        *before, last = (repr(known) for known in self.by_name if known not in self.stand_ins)
        return problems.problem((self.key,), name, f"should be {', '.join(before)} or {last}")

    def _problems_of_base(self, given: Mapping[str, Any]) -> list[InitErrorDetails]:
        """What is wrong with the settings that every kind reads."""
        try:
            self.base.model_validate({key: value for key, value in given.items() if key in self.base.model_fields})
        except ValidationError as error:
            return problems.as_details(error.errors(include_url=False), self.base)
        return []

    def _readers(self, key: str) -> list[str]:
        """The kinds that read a key which not every kind reads."""
        return [name for name in self.by_name if key in self.settings_of(name)]

    def _reworded(self, error: ValidationError, name: str) -> Iterator[InitErrorDetails]:
        kind = self.by_name[name]
        tags = 2 if self.stand_ins and name not in self.stand_ins else 1
        rest, unread, needed = [], [], []
        for entry in error.errors(include_url=False)[: problems.LIMIT_PROBLEMS]:
            entry["loc"] = place = entry["loc"][tags:]
            key = str(place[0]) if len(place) == 1 else ""
            readers = ", ".join(self._readers(key))
            if entry["type"] == "extra_forbidden" and readers:
                unread.append((key, f"{name} does not read {key}: it belongs to {readers}"))
            elif entry["type"] == "missing" and key:
                needed.append(f"{name} needs {key}")
            else:
                rest.append(entry)
        if unread or needed:
            yield problems.problem((), {}, "; ".join([*(text for _, text in sorted(unread)), *sorted(needed)]))
        yield from problems.as_details(rest, kind)
