import dataclasses
import functools
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save

from lstm_compile import ModelConfig, forward, init_params, load_model, save_model
from lstm_compile.data import Schema
from lstm_compile.errors import InputError
from lstm_compile.files import write_atomically
from lstm_compile.model import checkpoint
from lstm_compile.model.checkpoint import Model, numbered_schema
from lstm_compile.model.model import param_shapes

CONFIG = ModelConfig(
    task="classify", input_size=3, output_size=2, hidden_size=5, dropout=0.3, head_dropout=0.4
)
SCHEMA = Schema(("u", "v", "w"), ("no", "yes"), ())
TRAINING = {"seed": 7, "validation": {"accuracy": 0.5}, "data": "ünï"}


def write(folder, config=CONFIG, schema=SCHEMA, seed=0):
    path = folder / "model.safetensors"
    save_model(path, params_of(config, seed), config, schema, TRAINING)
    return path


@functools.cache
def params_of(config, seed=0):
    return init_params(config, seed)


def rewrite(path, tensors=None, drop=(), **metadata):
    """The file again, with other tensors or metadata than this package would write."""
    with safe_open(path, framework="pt") as archive:
        own = {k: v for k, v in archive.metadata().items() if k not in drop}
    path.write_bytes(save(tensors or load_file(path), {**own, **metadata}))
    return path


def changed_config(**changes):
    return json.dumps({**json.loads(CONFIG.to_json()), **changes})


def assert_refused(path, *messages):
    with pytest.raises(InputError) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    for message in messages:
        assert message in text


# ---- what is in the file


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bidirectional": False, "num_layers": 1, "pooling": "last"},
        {"bias": False, "num_layers": 3, "pooling": "dot-attention"},
        {"task": "regress", "scaling": "minmax", "target_scaling": "none"},
    ],
)
def test_what_is_saved_is_what_is_loaded(tmp_path, changes):
    config = dataclasses.replace(CONFIG, **changes)
    params = init_params(config, 3)
    path = tmp_path / "model.safetensors"
    save_model(path, params, config, None, TRAINING)
    for source in (path, str(path), tmp_path):
        model = load_model(source)
        assert list(model.params) == list(param_shapes(config))
        assert all(value.equal(params[name]) for name, value in model.params.items())
        assert all(value.dtype == torch.float32 for value in model.params.values())
        assert model[1:] == (config, numbered_schema(config), TRAINING)
    save_model(path, *load_model(path))
    assert load_model(path).config == config


def test_a_loaded_model_answers_as_the_one_saved(tmp_path):
    params = params_of(CONFIG)
    model = load_model(write(tmp_path))
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([6, 0, 1, 4])
    expected, _ = forward(params, CONFIG, x, lengths)
    assert forward(model.params, model.config, x, lengths)[0].equal(expected)


def test_the_keys_are_those_of_nn_lstm_behind_a_prefix(tmp_path):
    tensors = load_file(write(tmp_path))
    lstm = torch.nn.LSTM(3, 5, num_layers=2, bidirectional=True)
    expected = {f"lstm.{name}": tuple(value.shape) for name, value in lstm.named_parameters()}
    expected |= {
        "head.weight": (2, 10),
        "head.bias": (2,),
        "pooling.weight": (10,),
        "scaler.shift": (3,),
        "scaler.scale": (3,),
    }
    assert {name: tuple(value.shape) for name, value in tensors.items()} == expected
    lstm.load_state_dict(
        {k.removeprefix("lstm."): v for k, v in tensors.items() if k.startswith("lstm.")}
    )


def test_a_regression_file_holds_its_target_scaler(tmp_path):
    config = ModelConfig(task="regress", input_size=1, output_size=2, num_layers=1, pooling="mean")
    path = tmp_path / "model.safetensors"
    save_model(path, init_params(config, 0), config)
    kinds = {name.partition(".")[0] for name in load_file(path)}
    assert kinds == {"lstm", "head", "scaler", "target_scaler"}


def test_the_metadata_are_those_of_the_contract(tmp_path):
    with safe_open(write(tmp_path), framework="pt") as archive:
        metadata = archive.metadata()
    assert set(metadata) == {"format", "format_version", "config", "schema", "training"}
    assert (metadata["format"], metadata["format_version"]) == ("lstm_compile", "1")
    config = json.loads(metadata["config"])
    assert config == {
        "task": "classify",
        "input_size": 3,
        "output_size": 2,
        "hidden_size": 5,
        "num_layers": 2,
        "bidirectional": True,
        "bias": True,
        "dropout": 0.3,
        "head_dropout": 0.4,
        "pooling": "attention",
        "scaling": "standard",
        "target_scaling": "standard",
    }
    assert json.loads(metadata["schema"]) == {
        "features": ["u", "v", "w"],
        "classes": ["no", "yes"],
        "targets": [],
    }
    assert json.loads(metadata["training"]) == TRAINING


def test_float64_strided_and_differentiable_parameters_are_stored_as_plain_float32(tmp_path):
    params = {name: value.double() for name, value in params_of(CONFIG).items()}
    params["head.weight"] = params["head.weight"].T.contiguous().T.requires_grad_()
    path = tmp_path / "model.safetensors"
    save_model(path, params, CONFIG)
    found = load_model(path).params["head.weight"]
    assert found.equal(params_of(CONFIG)["head.weight"])
    assert not found.requires_grad


def test_saving_refuses_what_does_not_fit_and_writes_nothing(tmp_path):
    params = params_of(CONFIG)
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=r"tensors do not fit the config: missing head\.bias"):
        save_model(path, {k: v for k, v in params.items() if k != "head.bias"}, CONFIG)
    with pytest.raises(InputError, match="schema names 1 features and 2 outputs, the config has 3"):
        save_model(path, params, CONFIG, Schema(("u",), ("a", "b"), ()))
    assert list(tmp_path.iterdir()) == []


# ---- whole or not at all


def broken(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, name, error):
    path = write(tmp_path)
    before = path.read_bytes()

    def fail(*_):
        raise error(28, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    expected = InputError if error is OSError else KeyboardInterrupt
    with pytest.raises(expected, match="No space left on device"):
        write(tmp_path, seed=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_message_of_a_failing_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", broken)
    path = tmp_path / "model.safetensors"
    message = (
        f"{path}: cannot be written (No space left on device); check the folder and its rights"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        write(tmp_path)


def test_the_data_are_synced_before_the_file_takes_its_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("name"), replace(*names)))
    write(tmp_path)
    assert calls == ["sync", "name", "sync"]  # the file, its name, the folder that has the name


LIMITED = """
import resource, signal, sys
from pathlib import Path
from lstm_compile.errors import InputError
from lstm_compile.files import write_atomically

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_atomically(Path(sys.argv[1]), bytes(100_000))
except InputError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path):
    pytest.importorskip("resource")
    path = tmp_path / "model.safetensors"
    write_atomically(path, b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path}: cannot be written (File too large); check the folder")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    path = write(tmp_path)
    before = path.read_bytes()
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
            write(tmp_path, seed=1)
    finally:
        tmp_path.chmod(0o755)
    assert path.read_bytes() == before


def test_a_missing_folder_and_a_folder_in_the_place_of_the_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)"):
        write(tmp_path / "absent")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"cannot be written \(Is a directory\)"):
        write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_new_file_has_the_rights_that_the_umask_allows(tmp_path):
    old = os.umask(0o027)
    try:
        path = write(tmp_path)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


# ---- damaged files


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path):
    path = write(tmp_path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cuts = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1}
    for size in sorted(cuts | set(range(0, len(data), 97))):
        path.write_bytes(data[:size])
        assert_refused(path, "not a readable safetensors file", "; train or copy it again")


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"\0" * 4096,
        b"\xff" * 4096,
        (2).to_bytes(8, "little") + b"{}",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (11).to_bytes(8, "little") + b'{"a": [1,2]}',
    ],
)
def test_garbage_is_refused(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert_refused(path)


class Trap:
    """Unpickling an instance makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, dump):
    path, trap = tmp_path / "model.safetensors", tmp_path / "sprung"
    with path.open("wb") as file:
        dump({"head.weight": Trap(trap)}, file)
    assert_refused(path, "not a readable safetensors file")
    assert not trap.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole")).read_bytes()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_flipped_bytes_give_a_model_or_an_input_error(tmp_path_factory, whole, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    content = bytearray(whole)
    header = 8 + int.from_bytes(content[:8], "little")
    ends = st.sampled_from([8, header, len(content)])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(ends.flatmap(lambda end: st.integers(0, end - 1)))
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    answer = load_or_refuse(path)
    assert isinstance(answer, Model) or "\n" not in answer


def load_or_refuse(path):
    try:
        return load_model(path)
    except InputError as error:
        return str(error)


# ---- files of others, and files that do not fit together


def test_files_of_another_program_are_refused(tmp_path):
    path = write(tmp_path)
    path.write_bytes(save(load_file(path)))
    message = "not one of this package (metadata format is None, expected 'lstm_compile')"
    assert_refused(path, message, "make one with `lstm-compile train`")
    path.write_bytes(save({"w": torch.ones(2)}, {"format": "pt"}))
    assert_refused(path, "metadata format is 'pt', expected 'lstm_compile'")


@pytest.mark.parametrize("version", ["2", "", "1.0"])
def test_another_format_version_is_refused(tmp_path, version):
    path = rewrite(write(tmp_path), format_version=version)
    assert_refused(
        path,
        f"format_version is {version!r}, this package reads '1'",
        "; upgrade the package or train again",
    )


def test_missing_metadata_are_named(tmp_path):
    assert_refused(
        rewrite(write(tmp_path), drop=("schema", "training")),
        "metadata lacks ['schema', 'training']; train or copy it again",
    )


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    path = write(tmp_path)
    tensors = load_file(path)
    del tensors["lstm.weight_hh_l1_reverse"], tensors["scaler.shift"]
    tensors["head.bias"] = torch.zeros(3)
    tensors["head.more"] = torch.zeros(1)
    assert_refused(
        rewrite(path, tensors),
        "tensors do not fit the config: ",
        "head.bias has shape (3,), expected (2,)",
        "missing lstm.weight_hh_l1_reverse",
        "missing scaler.shift",
        "unexpected head.more",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_another_dtype_is_refused(tmp_path, dtype):
    path = write(tmp_path)
    tensors = load_file(path)
    tensors["head.bias"] = tensors["head.bias"].to(dtype)
    assert_refused(rewrite(path, tensors), "head.bias must be F32, found ", "; train again")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed_config(hiden_size=5),
            "ModelConfig: unknown keys ['hiden_size']; known are ['b",
        ),
        (changed_config(hidden_size=0), "hidden_size must be at least 1, got 0"),
        (changed_config(hidden_size=10**9), "hidden_size must be at most 65536, got 1000000000"),
        (changed_config(num_layers=10**9), "num_layers must be at most 64, got 1000000000"),
        (changed_config(input_size=0), "input_size must be at least 1, got 0"),
        (changed_config(output_size=10**9), "output_size must be at most 65536, got 1000000000"),
        (changed_config(hidden_size=True), "hidden_size must be of type int, got True"),
        (changed_config(hidden_size=5.0), "hidden_size must be of type int, got 5.0"),
        (changed_config(hidden_size="5"), "hidden_size must be of type int, got '5'"),
        (changed_config(bias=1), "bias must be of type bool, got 1"),
        (changed_config(dropout=float("nan")), "dropout must be at least 0.0, got nan"),
        (changed_config(dropout=1.5), "dropout must be at most 1.0, got 1.5"),
        (
            changed_config(task="guess"),
            "task must be one of classify, regress, forecast, tag, regress-steps, lm; got 'guess'",
        ),
        (changed_config(pooling=[]), "pooling must be one of last, mean, max, attention, dot-att"),
        ('{"task": "classify"}', "ModelConfig: missing keys ['input_size', 'output_size']"),
        ("[]", "ModelConfig: expected a JSON object, found list"),
        ("{", "ModelConfig: not valid JSON ("),
        ("[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "ModelConfig: not valid JSON ("),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path, config, message):
    assert_refused(rewrite(write(tmp_path), config=config), message)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            Schema(("u", "v"), ("no", "yes"), ()).to_json(),
            "schema names 2 features and 2 outputs, the config has 3 and 2",
        ),
        (
            Schema(("u", "v", "w"), ("no",), ()).to_json(),
            "schema names 3 features and 1 outputs, the config has 3 and 2",
        ),
        (
            Schema(("u", "v", "w"), (), ("s", "t")).to_json(),
            "schema names 3 features and 0 outputs, the config has 3 and 2",
        ),
        ('{"features": ["u"]}', "Schema: missing keys ['classes', 'targets']"),
        (
            '{"features": "uvw", "classes": ["a", "b"], "targets": []}',
            "Schema: features must be a list of strings, found 'uvw'",
        ),
        (
            '{"features": ["u", "u", "w"], "classes": ["a", "b"], "targets": []}',
            "Schema: features must differ, found 'u' twice",
        ),
        ("[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(tmp_path, schema, message):
    assert_refused(rewrite(write(tmp_path), schema=schema), message)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ("{", "metadata `training`: not valid JSON ("),
        ("[]", "metadata `training`: expected a JSON object, found list"),
        ("[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
    ],
)
def test_damaged_provenance_is_refused(tmp_path, training, message):
    assert_refused(rewrite(write(tmp_path), training=training), message)


@pytest.mark.parametrize(
    "damage",
    [
        {"config": changed_config(hidden_size=6)},
        {"config": changed_config(num_layers=64, hidden_size=1 << 16)},
        {"schema": Schema(("u",), ("no", "yes"), ()).to_json()},
        {"training": "{"},
        {"format_version": "2"},
    ],
)
def test_the_header_is_checked_before_any_tensor_is_read(tmp_path, monkeypatch, damage):
    path = rewrite(write(tmp_path), **damage)
    read = []

    class Archive:
        def __init__(self, archive):
            self.archive = archive

        def __getattr__(self, name):
            return getattr(self.archive, name)

        def get_tensor(self, name):
            read.append(name)

    original = checkpoint._read
    monkeypatch.setattr(checkpoint, "_read", lambda archive: original(Archive(archive)))
    assert_refused(path)
    assert read == []


# ---- paths


def test_paths_without_a_model_are_refused(tmp_path):
    absent = tmp_path / "absent"
    assert_refused(absent, "no such file or run folder; make one with `lstm-compile train`")
    assert_refused(
        tmp_path,
        "no model.safetensors in this folder; name a run folder, or make one with "
        "`lstm-compile train`",
    )
