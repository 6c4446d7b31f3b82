"""Ask an exported model about CSV files, with numpy and onnxruntime alone.

    python host.py MODEL.onnx SEQUENCE.csv [SEQUENCE.csv ...]

A file is one sequence: feature names in its first line, in any order, then one line a step. The
model may be of any task that reads numbers, and a streaming file too. Where a forecast takes what
is known of its horizon, a file ends in a line for each step ahead with the targets left empty; a
column `time` gives the calendar.
"""

import csv
import json
import sys

import numpy as np
import onnxruntime

INTERFACE_VERSION = "1"


def read_metadata(session):
    """What the file says of itself; another interface may mean other things by the same names."""
    texts = session.get_modelmeta().custom_metadata_map
    if texts.get("format") != "lstm_compile" or texts["interface_version"] != INTERFACE_VERSION:
        sys.exit("not a model of lstm-compile, interface version 1: export it again")
    return {key: json.loads(t) if t[:1] in ("{", "[") else t for key, t in texts.items()}


def read_sequence(path, metadata):
    """The sequence (time, features), and what is known of the horizon (horizon, known) or None."""
    with open(path, newline="") as file:
        names, *lines = [line for line in csv.reader(file) if line]
    schema, config = metadata["schema"], metadata["config"]
    if parts := schema.get("series", {}).get("calendar"):
        names += [f"{part}_{wave}" for part in parts for wave in ("sin", "cos")]
        stamps = [line[names.index("time")] for line in lines]
        lines = [line + row for line, row in zip(lines, calendar(stamps, parts), strict=True)]
    if "known_future" not in metadata["inputs"]:
        return read_columns(path, names, lines, schema["features"]), None
    ahead = 1 if config["decoder"] == "recursive" else config["horizon"]
    past, future = lines[:-ahead], lines[-ahead:]
    first = config["output_size"] + config["past_size"]
    known = schema["features"][first : first + config["known_size"]]
    sequence = read_columns(path, names, past, schema["features"])
    return sequence, read_columns(path, names, future, known)


def read_columns(path, names, lines, wanted):
    """(lines, wanted) float32: columns by name, in the model's order, whatever the file's is."""
    for name in wanted:
        if name not in names:
            sys.exit(f"{path}: no column {name!r}; the model reads {', '.join(wanted)}")
    try:
        rows = [[float(line[names.index(name)]) for name in wanted] for line in lines]
    except (ValueError, IndexError) as error:
        sys.exit(f"{path}: {error}")
    numbers = np.array(rows, np.float32).reshape(-1, len(wanted))
    if not np.isfinite(numbers).all():  # one NaN in a step would make every answer after it NaN
        sys.exit(f"{path}: every value must be a finite float32 number")
    return numbers


def calendar(stamps, parts):
    """Sine and cosine of the hour of the day, the weekday, the month: a list for each stamp."""
    times = np.array(stamps, "M8[s]")
    days = times.astype("M8[D]")
    shares = {
        "hour": (times - days) / np.timedelta64(1, "D"),
        "weekday": (days.astype(int) + 3) % 7 / 7,  # day 0 was a Thursday
        "month": times.astype("M8[M]").astype(int) % 12 / 12,
    }
    angles = [2 * np.pi * shares[part] for part in parts]
    return np.stack([f(angle) for angle in angles for f in (np.sin, np.cos)], 1).tolist()


def ask_whole(session, metadata, sequences, futures):
    """One call for all: zeros behind the shorter ones, and `lengths` says where each ends."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    time = max(1, lengths.max())  # onnxruntime ends the process on a time of 0
    x = np.zeros((len(sequences), time, len(metadata["schema"]["features"])), np.float32)
    for row, sequence in zip(x, sequences, strict=True):
        row[: len(sequence)] = sequence
    inputs = {"x": x, "lengths": lengths}
    if futures[0] is not None:
        inputs["known_future"] = np.stack(futures)
    (answers,) = session.run(metadata["outputs"], inputs)
    if metadata["task"] == "tag":
        return [answer[:length] for answer, length in zip(answers, lengths, strict=True)]
    return [answer if answer.ndim > 1 else answer[None] for answer in answers]


def ask_stepwise(session, metadata, sequence):
    """One call a step; what comes out of a call as state goes into the next."""
    tensors, outputs, answers = metadata["state"]["tensors"], metadata["outputs"], []
    state = {name: initial(**tensor) for name, tensor in tensors.items()}
    for step in sequence:
        found = session.run(outputs, {"x": step[None, None], **state})
        found = dict(zip(outputs, found, strict=True))
        state = {name: found[tensor["from"]] for name, tensor in tensors.items()}
        answers.append(found[outputs[0]][0])
    if metadata["task"] == "tag":
        return [row for answer in answers for row in answer]
    return answers[-1] if answers and answers[-1].ndim > 1 else answers[-1:]


def initial(shape, initial, **_):
    """The state before a stream's first step; a size that is a name is the batch, here 1."""
    return np.full([size if isinstance(size, int) else 1 for size in shape], initial, np.float32)


def names_of(metadata):
    """The names of an answer's numbers."""
    names = metadata["schema"]["classes"] or metadata["schema"]["targets"]
    quantiles = metadata["config"].get("quantiles")
    return [f"{name} {q}" for name in names for q in quantiles] if quantiles else names


def main(model, *paths):
    """Print a line for each answer."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = read_metadata(session)
    streams = "state" in metadata
    read = ("x", "lengths", "known_future", "h", "c")
    for name in metadata["inputs"]:
        if name not in read or (streams and name == "known_future"):
            sys.exit(f"this program does not give the input {name} that the model reads")
    sequences, futures = zip(*[read_sequence(path, metadata) for path in paths], strict=True)
    if metadata["task"] == "forecast" and not streams:
        sequences = [sequence[-metadata["config"]["context"] :] for sequence in sequences]
    if streams:
        answers = [ask_stepwise(session, metadata, sequence) for sequence in sequences]
    else:
        answers = ask_whole(session, metadata, sequences, futures)
    print("sequence", "step", *names_of(metadata), sep=",")
    for path, answer in zip(paths, answers, strict=True):
        for step, numbers in enumerate(answer):
            print(path, step, *numbers.ravel(), sep=",")


if __name__ == "__main__":
    main(*sys.argv[1:])
