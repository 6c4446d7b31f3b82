"""Damaged and hostile files, made from those of tests/corpus by a source of random numbers.

Each format is changed where it hurts: bytes anywhere, and what it means with everything around it
still in order, so that a changed number is not found by the first check on the way.
"""

import io
import json
import zipfile
from pathlib import Path

import onnx

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
LARGEST = 1 << 22  # bytes of a changed file
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 255, 256, 65535, 65536, 1 << 20, 1 << 28, 10**9, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1),
)
JSON_VALUES = (
    *NUMBERS, None, True, False, "", "x", "x" * 5000, 1.5, 1e308, float("nan"), float("inf"),
    [], {}, [[]], [None], ["x", "x"], {"x": {}}, 10**400,
)  # fmt: skip
TEXTS = (
    *("", "nan", "inf", "-inf", "1e999", "?", '"', '""', "'", ",", ";", ":", "\t", "\n", "\r\n"),
    *("\0", "\ufeff", "é", "\ud800", "@data", "@dimensions 99999999", "#", "{", "}", "[" * 3000),
    *("1_000", "9" * 400, "x" * 70000, "null", "true", "2024-02-30", "0x10", "-", "1,", ",1"),
)
HEADERS = (
    "{'descr': '|O', 'fortran_order': False, 'shape': (9,), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (1073741824, 4), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (99999999999999999999, 2), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }",
    "{'descr': [('a', '<f4', (1000000000,))], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (4,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
    "(" * 9000,
)


def originals(*suffixes):
    """The files of the corpus that end so."""
    return sorted(path for path in CORPUS.iterdir() if path.suffix in suffixes)


def mutated(path, random):
    """The bytes of `path` after one to four changes."""
    data = path.read_bytes()
    change = CHANGES.get(path.suffix, changed_text)
    for _ in range(random.randint(1, 4)):
        if len(data) < LARGEST:
            data = (change if random.random() < 0.7 else changed_bytes)(data, random)
    return data[:LARGEST]


# ---- bytes


def changed_bytes(data, random):
    data = bytearray(data or b"\0")
    start = random.randrange(len(data))
    span = data[start : start + random.choice((1, 2, 4, 8, 64, 1000))]
    kind = random.randrange(8)
    if kind == 0:
        data[start] ^= 1 << random.randrange(8)
    elif kind == 1:
        data[start] = random.randrange(256)
    elif kind == 2:
        size = random.choice((1, 2, 4, 8))
        number = random.choice(NUMBERS) % (1 << 8 * size)
        data[start : start + size] = number.to_bytes(size, random.choice(("little", "big")))
    elif kind == 3:
        del data[start:]
    elif kind == 4:
        del data[start : start + len(span)]
    elif kind == 5:
        data[start:start] = span * random.choice((1, 2, 100))
    elif kind == 6:
        data[start : start + len(span)] = bytes(random.choice((0, 0, 255, 128)) for _ in span)
    else:
        data[start:start] = bytes(random.randrange(256) for _ in range(random.randint(1, 9)))
    return bytes(data)


# ---- JSON, wherever it stands


def changed_json(text, random):
    """A JSON text with one value replaced, doubled or gone."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text + random.choice(TEXTS)
    places = list(_places(value))
    if not places or random.random() < 0.03:
        return random.choice(("[" * 100_000, '{"a":' * 5000, "[[]," * 5000, "", "NaN", "7"))
    holder, key = random.choice(places)
    kind = random.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random.choice(("x", "", "__class__", "task", "hidden_size"))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder *= random.choice((2, 1000))
    elif kind == 3:
        other, name = random.choice(places)
        holder[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
    elif isinstance(holder[key], str) and holder[key][:1] in ("{", "[") and random.random() < 0.9:
        holder[key] = changed_json(holder[key], random)
    else:
        holder[key] = random.choice(JSON_VALUES)
    return json.dumps(value)


def _keys(holder):
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(value):
    for key in _keys(value) if isinstance(value, dict | list) else ():
        yield value, key
        yield from _places(value[key])


# ---- safetensors


def changed_safetensors(data, random):
    size = int.from_bytes(data[:8], "little")
    header = changed_json(data[8 : 8 + size].decode("utf-8", "replace"), random)
    header = header.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


# ---- ONNX


def changed_onnx(data, random):
    try:
        model = onnx.load_model_from_string(data)
    except Exception:
        return changed_bytes(data, random)
    if not model.ListFields():
        return changed_bytes(data, random)
    if random.random() < 0.15 and model.metadata_props:
        entry = random.choice(model.metadata_props)
        entry.value = changed_json(entry.value, random).replace("\ud800", "")
        return model.SerializeToString()
    message, field = random.choice(list(_fields(model)))
    value = getattr(message, field.name)
    if field.is_repeated and len(value):
        _change_list(value, field, random)
    elif field.message_type is None and not field.is_repeated:
        setattr(message, field.name, _value(field, random, value))
    else:
        message.ClearField(field.name)
    try:
        return model.SerializeToString()
    except Exception:
        return data


def _fields(message):
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from _fields(each)


def _change_list(values, field, random):
    index, kind = random.randrange(len(values)), random.randrange(4)
    if kind == 0:
        del values[index]
    elif kind == 1 and field.message_type is None:
        values[index] = _value(field, random, values[index])
    elif kind == 2:
        for _ in range(random.choice((1, 1, 500))):
            values.append(values[index]) if field.message_type is None else values.add().CopyFrom(
                values[index]
            )
    elif field.message_type is None:
        values[:] = [_value(field, random, values[index])] * random.choice((1, 2, 8, 300))
    else:
        values[index].CopyFrom(random.choice(values))


def _value(field, random, old):
    if field.enum_type is not None:
        return random.choice([value.number for value in field.enum_type.values])
    if isinstance(old, bytes):
        return _raw(old, random)
    if isinstance(old, str):
        return random.choice((old + "x", "", "Loop", "ConstantOfShape", "Expand", "Reshape", "x"))
    if isinstance(old, float):
        return random.choice((0.0, -1.0, 3e38, float("nan"), float("inf")))
    number = random.choice(NUMBERS)
    narrow = field.cpp_type == field.CPPTYPE_INT32
    return max(-(1 << 31), min(number, (1 << 31) - 1)) if narrow else min(number, (1 << 63) - 1)


def _raw(old, random):
    if len(old) % 8 or not old or random.random() < 0.5:
        return changed_bytes(old, random)
    at = 8 * random.randrange(len(old) // 8)
    number = random.choice(NUMBERS) % (1 << 64)
    return old[:at] + number.to_bytes(8, "little") + old[at + 8 :]


# ---- npz


def changed_npz(data, random):
    """An archive whose members are whole, and one of them is not what it was."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return changed_bytes(data, random)
    if not members:
        return data
    name = random.choice(sorted(members))
    kind = random.randrange(6)
    if kind == 0:
        members[name] = _npy(random.choice(HEADERS), members[name], random)
    elif kind == 1:
        members[name] += bytes(50_000_000) if random.random() < 0.05 else bytes(1000)
    elif kind == 2:
        members[random.choice(("x.npy", "y.npy", "features.npy", "../x.npy"))] = members.pop(name)
    elif kind == 3:
        header = members[name][10:].split(b"\n")[0].decode("latin-1")
        old, new = random.choice("0123456789fiU<|(),'"), random.choice(("9999999999", "O", "", "-"))
        members[name] = _npy(header.replace(old, new, 1), members[name], random)
    else:
        members[name] = changed_bytes(members[name], random)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as z:
        for each, content in members.items():
            z.writestr(each, content)
    return out.getvalue()


def _npy(header, old, random):
    body = old.split(b"\n", 1)[-1]
    text = header.encode("latin-1", "replace") + b" " * random.randrange(9) + b"\n"
    return b"\x93NUMPY\x01\0" + (len(text) % 65536).to_bytes(2, "little") + text + body


# ---- text


def changed_text(data, random):
    """A text file with a cell, a line or a separator that is not what it was."""
    text = data.decode("utf-8", "surrogateescape")
    parts = [part for mark in ("\n", ",", ":") for part in [(mark, text.split(mark))]]
    mark, cells = random.choice([part for part in parts if len(part[1]) > 1] or [("\n", [text])])
    index, kind = random.randrange(len(cells)), random.randrange(5)
    if kind == 0:
        del cells[index]
    elif kind == 1:
        cells[index:index] = [cells[index]] * random.choice((1, 2, 3000))
    elif kind == 2:
        cells[index] = random.choice(cells)
    elif kind == 3:
        cells[index] += random.choice(TEXTS)
    else:
        cells[index] = random.choice(TEXTS)
    return mark.join(cells).encode("utf-8", "surrogatepass" if "\ud800" in text else "replace")


CHANGES = {
    ".safetensors": changed_safetensors,
    ".onnx": changed_onnx,
    ".npz": changed_npz,
    ".parquet": changed_bytes,
    ".arrow": changed_bytes,
    ".feather": changed_bytes,
}
