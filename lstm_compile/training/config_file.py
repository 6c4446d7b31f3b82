"""Settings as TOML, such as the `config.toml` of a run. Loads no torch."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from lstm_compile.config import DERIVED
from lstm_compile.tasks import fitting_task
from lstm_compile.training.defaults import SECTIONS, tunable_fields

if TYPE_CHECKING:
    from lstm_compile.training.job import Job

Sections = Mapping[str, Mapping[str, Any]]
Sources = Mapping[str, str | None]
Texts = Mapping[str, str]


def to_toml(job: "Job") -> str:
    """All settings of a run; `train --config` reads them back."""
    model = {k: v for k, v in job.config.to_dict().items() if k not in DERIVED}
    inferred = [fitting_task(None, can_stream=True, has_classes=has) for has in (True, False)]
    is_open = job.asked is None and job.config.task in inferred
    sources = {"task": None if is_open else job.config.task, "data": job.data, "test": job.test}
    # without the means, which are computed anew when the data are read again
    table = {name: value for name, value in table_of(job).items() if name != "means"}
    return _to_toml(sources, {"model": model, "training": asdict(job.training), "table": table})


def to_explained_toml(sources: Sources, sections: Sections) -> str:
    """Settings, each below a comment that explains it; unset ones are comments themselves.

    Of `task`, `data` and `test`, those that are None are left out.
    """
    return _to_toml(sources, sections, _explanations())


def _to_toml(sources: Sources, sections: Sections, explanations: Texts | None = None) -> str:
    lines = [f"{name} = {_toml_value(path)}" for name, path in sources.items() if path is not None]
    for title, values in sections.items():
        if values:
            lines += ["", f"[{title}]", *_entries(values, explanations)]
    return "\n".join(lines) + "\n"


def _entries(values: Mapping[str, Any], explanations: Texts | None) -> Iterator[str]:
    for name, value in values.items():
        if explanations:
            yield f"# {explanations[name]}"
        yield f"# {name} =" if value is None else f"{name} = {_toml_value(value)}"


def _explanations() -> dict[str, str]:
    return {
        field.name: _explanation(field, get_type_hints(cls)[field.name])
        for cls in SECTIONS.values()
        for field in tunable_fields(cls)
    }


def _explanation(field: Field[Any], hint: Any) -> str:
    words, text = field.metadata["choices"], field.metadata["help"]
    choices = ", ".join(words() if words else _choices(hint))
    unset = f" Unset: {field.metadata['unset']}." if field.default in (None, ()) else ""
    return f"{text}{f' One of: {choices}.' if choices else ''}{unset}"


def _choices(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((found for part in get_args(hint) if (found := _choices(part))), ())


def table_of(job: "Job") -> dict[str, Any]:
    """The columns of a long table that the run reads, inferred ones too."""
    roles = job.parts.train.roles
    found = asdict(roles.options) if roles else {}
    return {name: value for name, value in found.items() if value not in (None, ())}


def _toml_value(value: Any) -> str:
    # TOML writes values as JSON does, but forbids surrogate pairs, and DEL unless escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
