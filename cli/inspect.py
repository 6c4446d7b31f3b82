"""`lstm-compile inspect`."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.help import data_names
from lstm_compile.cli.options import flags_of, json_option, task_option
from lstm_compile.cli.working import working
from lstm_compile.data.bundled import SERIES
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.formatting import listing
from lstm_compile.tasks import find_task
from lstm_compile.training.defaults import resolve

BAR = 40  # widest bar of the histogram
RIGHT_IN = {"any": "every runtime that loads it", "onnxruntime": "ONNX Runtime only"}
Line = tuple[str, str]
EXAMPLES = (
    "inspect data.csv --id machine --target state",
    "inspect runs/spoken-digits-1",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("source", metavar="DATA|RUN|MODEL", shell_complete=data_names)
@json_option
@task_option
@flags_of(TableOptions)
def command(source: str, as_json: bool, task: str | None, **options: Any) -> None:
    """Describe data, a run folder or the file of a model.

    The file ends in .safetensors or .onnx. DATA is a file or a bundled data set (its training
    part). Shown are sequences, lengths, gaps, classes, and columns that are constant, equal or seem
    to hold the answer; for text its characters and the length of training; for a model names,
    shapes, figures and its origin.
    """
    asked, out = TableOptions(**options), output.console(as_json)
    with working(out, "reading"):
        from lstm_compile.export.use.inspect import inspect_source

        found = inspect_source(source, asked, lambda: resolve(source, "lm").training, task)
    if as_json:
        return output.print_json(found)
    show = {"data": _data, "series": _series, "text": _text}.get(found["kind"], _model)
    output.lines(out, *show(source, {**found, "asked task": task}, asked))
    return None


def _data(source: str, found: dict[str, Any], asked: TableOptions) -> Iterator[Line]:
    is_text = "vocabulary" in found
    lengths, part = found["lengths"], f" ({found['part']} part)" if found["part"] else ""
    sizes = [output.counted(found[rows], rows) for rows in ("sequences", "rows")]
    yield "data", f"{source}{part}: {', '.join(sizes)}"
    if is_text:
        yield from _vocabulary(found["vocabulary"])
    else:
        yield "features", f"{len(found['features'])}: {listing(found['features'])}"
    yield "lengths", ", ".join(f"{name} {value:g}" for name, value in lengths.items())
    yield from _histogram(found["histogram"])
    yield from _columns(found["columns"] or {})
    yield "missing", _counts(found["missing"]) or "none"
    yield from _labels(found)
    if not is_text:
        yield from _oddities(found)
    task = ["--task", found["asked task"]] if found["asked task"] else []
    if target := _only_left_out(found):
        flags = [*task, *_flags(asked, found), "--target", shlex.quote(target)]
        yield "next", output.command("train", Path(source), *flags)
    if found["unlabelled"]:
        yield "next", f"lstm-compile predict RUN {shlex.quote(source)} --output predictions.csv"
    else:
        yield "next", output.command("train", Path(source), *task, *_flags(asked, found))


def _only_left_out(found: dict[str, Any]) -> str | None:
    """The one column that is neither input nor label, which may be the target; else None."""
    names = list((found["columns"] or {}).get("left_out", ()))
    return names[0] if found["unlabelled"] and len(names) == 1 else None


def _oddities(found: dict[str, Any]) -> Iterator[Line]:
    yield "constant", listing(found["constant"]) or "none"
    yield "equal", "; ".join(" = ".join(names) for names in found["duplicate"]) or "none"
    for leak in found["leaks"]:
        yield (
            "suspicious",
            f"{leak['feature']}: {leak['reason']}; if it holds the answer, leave it out",
        )
    if not found["leaks"]:
        yield "suspicious", "none: no feature seems to hold the answer"


def _text(source: str, found: dict[str, Any], _: TableOptions) -> Iterator[Line]:
    size = f"{found['characters']} characters ({found['bytes'] / 1000:.0f} kB)"
    yield "data", f"{source}: {found['documents']} document{'s'[: found['documents'] != 1]}, {size}"
    yield from _vocabulary(found["vocabulary"])
    plan = found["training"]
    parts = f"{plan['train']} characters to train, the last {plan['validation']} to validate"
    yield "training", f"{parts}; {plan['steps']} steps an epoch, at most {plan['epochs']} epochs"
    yield "next", output.command("train", Path(source), "--task", "lm")


def _vocabulary(counts: dict[str, int]) -> Iterator[Line]:
    total = sum(counts.values())
    names = {_visible(name): count for name, count in counts.items()}
    yield "vocabulary", f"{len(counts)}: {_counts(names, total)}"


def _visible(name: str) -> str:
    return repr(name) if name.isspace() or not name.isprintable() else name


def _series(source: str, found: dict[str, Any], asked: TableOptions) -> Iterator[Line]:
    yield "data", f"{source}: {found['series']} series, {found['rows']} steps of {found['step']}"
    yield "columns", found["columns"]
    yield "from, to", f"{found['from']}, {found['to']}"
    yield "lengths", ", ".join(f"{name} {value:g}" for name, value in found["lengths"].items())
    yield "season", f"{found['season']} steps"
    yield "missing", _counts(found["missing"]) or "none"
    task = [] if source in SERIES else ["--task", "forecast"]
    yield "next", output.command("train", Path(source), *task, *_flags(asked, {"missing": None}))


def _columns(columns: dict[str, Any]) -> Iterator[Line]:
    for role in ("id", "time", "target") if columns else ():
        inferred = " (inferred)" if role in columns["inferred"] else ""
        yield role, (listing(columns[role]) or "none") + inferred
    if columns.get("left_out"):
        left_out = [f"{name} ({kind})" for name, kind in columns["left_out"].items()]
        yield "left out", listing(left_out)


def _flags(asked: TableOptions, found: dict[str, Any]) -> Iterator[str]:
    """The flags that were given, for the next command, and the flag that gaps need."""
    for name in asked.changed_flags:
        value = getattr(asked, name.removeprefix("--").replace("-", "_"))
        names = ",".join(map(_listed, value)) if isinstance(value, tuple) else str(value)
        yield name
        yield shlex.quote(names)
    if found["missing"] and asked.missing in (None, "error"):
        yield "--missing forward"


def _listed(name: str) -> str:
    """A name as one of several in a flag's value."""
    is_plain = name == name.strip() and not set(name) & {",", '"'}
    return name if is_plain else '"' + name.replace('"', '""') + '"'


def _histogram(bins: list[dict[str, int]]) -> Iterator[Line]:
    most = max((row["sequences"] for row in bins), default=1)
    names = ["-".join(map(str, sorted({row["from"], row["to"]}))) for row in bins]
    width = max(map(len, names), default=0)
    for name, row in zip(names, bins, strict=True):
        bar = "█" * -(-BAR * row["sequences"] // most)  # rounded up, so that one sequence shows
        yield "", f"{name:>{width}} {bar} {row['sequences']}"


def _labels(found: dict[str, Any]) -> Iterator[Line]:
    if found["unlabelled"]:
        yield "labels", f"none that can be read: {found['unlabelled']}"
    if found["classes"]:
        counts = found["classes"]
        yield "classes", f"{len(counts)}: {_counts(counts, sum(counts.values()))}"
    for name, numbers in found["targets"].items():
        text = ", ".join(f"{key} {value:.6g}" for key, value in numbers.items())
        yield "target", f"{name}: {text}"


def _model(source: str, found: dict[str, Any], _: TableOptions) -> Iterator[Line]:
    schema, training, config = found["schema"], found["training"], found["config"]
    yield found["kind"], f"{source} ({found['bytes'] / 1000:.0f} kB)"
    answers = listing(schema["classes"] or schema["targets"]) or "the next character"
    yield "task", f"{found['task']}: {answers}"
    if schema.get("vocabulary"):
        yield "text", _tokens(schema["vocabulary"])
    else:
        yield "features", f"{len(schema['features'])}: {listing(schema['features'])}"
        yield "scaling", _scaling(config)
    if "units" in schema:
        units = zip((*schema["features"], *schema["targets"]), schema["units"], strict=True)
        yield "units", listing([f"{name} {unit}" for name, unit in units if unit])
    yield "shape", f"{_shape(config)}, {found['parameters']} parameters"
    yield from _interface(found)
    yield from _figures(training)
    yield "next", _next(Path(source), found)


def _next(path: Path, found: dict[str, Any]) -> str:
    if found["kind"] == "run":
        is_own = found["config"].get("cell_sha256")
        return output.command("export", path, "--onnx", *["--cell FILE.py:NAME"] * bool(is_own))
    streams = "h" in found.get("inputs", {})
    if streams and find_task(found["task"]).is_text:
        return output.command("generate", path)
    if streams:
        return output.command("verify", path.parent, "--onnx", shlex.quote(str(path)))
    return output.command("evaluate", path)


def _tokens(vocabulary: dict[str, Any]) -> str:
    if vocabulary["kind"] == "byte":
        return "the bytes of UTF-8"
    shown = [_visible(each) for each in vocabulary["characters"]]
    return f"{len(shown)} characters: {listing(shown)}"


def _shape(config: dict[str, Any]) -> str:
    directions = "both directions" if config["bidirectional"] else "forward"
    layers = f"{config['num_layers']} layers of {config['hidden_size']}"
    pooling = f", pooling {config['pooling']}" if "pooling" in config else ""
    blocks = ""
    if "transformer_layers" in config:
        blocks = f", {config['transformer_layers']} Transformer blocks of {config['heads']} heads"
    cell = f", cell {config['cell']}" if "cell" in config else ""
    return f"{layers}, {directions}{cell}{blocks}{pooling}"


def _scaling(config: dict[str, Any]) -> str:
    targets = config["target_scaling"] if find_task(config["task"]).has_target_scaler else "none"
    kinds = {"features": config["scaling"], "targets": targets}
    found = ", ".join(f"{name} {kind}" for name, kind in kinds.items() if kind != "none")
    return f"inside: {found}" if found else "none"


def _interface(found: dict[str, Any]) -> Iterator[Line]:
    for kind in ("inputs", "outputs"):
        for name, tensor in found.get(kind, {}).items():
            sizes = ", ".join(map(str, tensor["shape"]))
            yield kind[:-1], f"{name} {tensor['type']} [{sizes}]"
    if "opset" in found:
        yield from _form(found)
    if "files" in found:
        yield "files", listing(list(found["files"]))


def _form(found: dict[str, Any]) -> Iterator[Line]:
    """What a host needs to know of an ONNX file beside names and shapes."""
    for name, pair in found.get("state", {}).get("tensors", {}).items():
        before = f"{name} takes {pair['from']} of the call before"
        yield "state", f"{before}, {pair['initial']:g} at first"
    if "quantization" in found:
        error = found["quantization"]["error"]
        yield "quantized", f"weights {found['quantization']['weights']}, error {error:.1e}"
    known = ("interface_version", "profile", "opset", "ir_version")
    yield "format", ", ".join(f"{key} {found[key]}" for key in known)
    yield "lengths", f"right in {RIGHT_IN.get(found['runtimes'], found['runtimes'])}"
    yield "self-test", f"SHA-256 {found['selftest_sha256']}"


def _figures(training: dict[str, Any]) -> Iterator[Line]:
    for part in ("validation", "test"):
        if isinstance(training.get(part), dict):
            yield part, output.metrics(training[part])
    known = ("data", "data_fingerprint", "seed", "epochs", "stopped")
    shown = [f"{key} {training[key]}" for key in known if key in training]
    shown += [f"{name} {number}" for name, number in training.get("versions", {}).items()]
    yield "trained", ", ".join(shown) or "nothing is written down"


def _counts(counts: dict[str, int], total: int = 0) -> str:
    shares = {name: f" ({100 * n / total:.1f} %)" if total else "" for name, n in counts.items()}
    return listing([f"{name} {count}{shares[name]}" for name, count in counts.items()])
