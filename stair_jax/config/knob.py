"""What is said of a setting, once: a field of a frozen section of the configuration. Floor 0."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stair_jax.config.ranges import Range

Frozen = TypeVar("Frozen", bound="Section")


@dataclasses.dataclass(frozen=True)
class Under:
    """Where a setting counts: changed from its default elsewhere, it would be ignored.

    Attributes:
      counts: of the configuration of a run, and of the section that the setting is in.
      needs: a description of that; "{section}" is replaced by the section's name.
      values: those that are ignored otherwise; None for all but the default.
    """

    counts: Callable[[Any, Any], Any]
    needs: str
    values: tuple[Any, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knob:
    """One setting.

    Attributes:
      default: its value unless it is set.
      meaning: with unit and source.
      among: the numbers that it may be; None for what is no number, and for several.
      choices: the words that it may be; empty for any text.
      words: where it is a comma-separated list, what may stand there; empty for any text.
      under: where it counts; empty for everywhere.
      free: whether a continued run may change it: no result depends on it.
    """

    default: Any
    meaning: str
    among: Range | None = None
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    under: tuple[Under, ...] = ()
    free: bool = False


def knob(
    default: Any,
    meaning: str,
    among: Range | None = None,
    *,
    words: tuple[str, ...] = (),
    under: Under | tuple[Under, ...] = (),
    free: bool = False,
) -> Any:
    """Returns the field of a setting; see `Knob`. Its choices are those of its type, a Literal."""
    under = (under,) if isinstance(under, Under) else under
    said = Knob(default=default, meaning=meaning, among=among, words=words, under=under, free=free)
    return _field(said)


def like(section: type["Section"], name: str, default: Any = None, **more: Any) -> Any:
    """Returns the field of a section once more, for a narrower one, with other values.

    Args:
      section: the wider one.
      name: of the field.
      default: None for the same.
      more: other attributes of the `Knob`.
    """
    said = knobs_of(section)[name]
    if isinstance(more.get("under"), Under):
        more["under"] = (more["under"],)
    return _field(
        dataclasses.replace(said, default=said.default if default is None else default, **more)
    )


def _field(said: Knob) -> Any:
    return dataclasses.field(default=said.default, metadata={"knob": said})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the frozen configurations."""

    @classmethod
    def of(cls: type[Frozen], c: Any, **more: Any) -> Frozen:
        """Builds from a section of the configuration; a missing or extra key is a TypeError.

        Args:
          c: a ConfigDict or any mapping; sections nested in it are left to their own classes.
          more: values that `c` does not have, or that replace its own.
        """
        values = {k: v for k, v in c.items() if not hasattr(v, "items")} | more
        if missing := knobs_of(cls).keys() - values.keys():
            raise TypeError(f"{cls.__name__}: {sorted(missing)} missing")
        return cls(**values)


def knobs_of(section: type[Section]) -> Mapping[str, Knob]:
    """Returns the settings of a section by name; other fields are no settings."""
    types = typing.get_type_hints(section)
    return {
        field.name: dataclasses.replace(field.metadata["knob"], choices=_choices(types[field.name]))
        for field in dataclasses.fields(section)
        if "knob" in field.metadata
    }


def _choices(kind: Any) -> tuple[str, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
