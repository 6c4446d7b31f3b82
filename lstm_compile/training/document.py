"""`config.toml`: the settings of a run, which `train` reads back."""

import json
from dataclasses import asdict
from typing import Any

from lstm_compile.config import DERIVED
from lstm_compile.training.job import Job


def to_toml(job: Job) -> str:
    """The resolved settings; `train --config` reads them back."""
    model = {k: v for k, v in job.config.to_dict().items() if k not in DERIVED}
    task = None if job.config.task in ("classify", "regress") else job.config.task
    sources = {"task": task, "data": job.data, "test": job.test}
    lines = [f"{name} = {_toml_value(path)}" for name, path in sources.items() if path is not None]
    # means are those of the data, which whoever reads this file reads again
    table = {name: value for name, value in table_of(job).items() if name != "means"}
    sections = {"model": model, "training": asdict(job.training), "table": table}
    for title, values in sections.items():
        if not values:
            continue
        lines += ["", f"[{title}]"]
        lines += [f"{name} = {_toml_value(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def table_of(job: Job) -> dict[str, Any]:
    """The columns of a long table that the run reads, those that were inferred too."""
    roles = job.parts.train.roles
    found = asdict(roles.options) if roles else {}
    return {name: value for name, value in found.items() if value not in (None, ())}


def _toml_value(value: Any) -> str:
    # JSON's notation is TOML's but for surrogate pairs and for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
