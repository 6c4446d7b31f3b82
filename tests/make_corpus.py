"""Make the files of tests/corpus anew: small, well-formed, one or more of each format.

python tests/make_corpus.py
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, feather, parquet
from safetensors.torch import save_file

from lstm_compile import ModelConfig, init_params, save_model
from lstm_compile.evaluation.baselines import to_tensors
from lstm_compile.evaluation.linear import Baseline
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.export.write.streaming import to_streaming
from lstm_compile.model.checkpoint import Model, numbered_schema

CORPUS = Path(__file__).resolve().parent / "corpus"
SMALL = {"hidden_size": 3, "num_layers": 1}
CONFIGS = {
    "classify": ModelConfig(task="classify", input_size=2, output_size=3, **SMALL),
    "regress": ModelConfig(task="regress", input_size=2, output_size=1, pooling="mean", **SMALL),
    "tag": ModelConfig(task="tag", input_size=2, output_size=3, **SMALL),
    "forecast": ModelConfig(
        task="forecast", input_size=4, output_size=1, past_size=1, known_size=2, static_sizes=(2,),
        context=4, horizon=3, pooling="last", scaling="revin", season=2, quantiles=(0.1, 0.5, 0.9),
        bidirectional=False, **SMALL,
    ),
    "lm": ModelConfig(
        task="lm", input_size=1, output_size=5, vocabulary_size=5, embedding_size=3, tie=True,
        bidirectional=False, **SMALL,
    ),
}  # fmt: skip


def models():
    for name, config in CONFIGS.items():
        params, schema = init_params(config, 0), numbered_schema(config)
        training = {"seed": 0, "data": "spoken-digits", "target_mean": [0.0]}
        save_model(CORPUS / f"{name}.safetensors", params, config, schema, training)
        model = Model(params, config, schema, training)
        (CORPUS / f"{name}.onnx").write_bytes(to_onnx(model).SerializeToString())
        if name == "lm":
            data = to_streaming(model).SerializeToString()
            (CORPUS / "streaming.onnx").write_bytes(data)
    bias = torch.tensor([0.5, 0.3, 0.2]).double()
    fitted = {"majority class": Baseline(torch.zeros(0, 3).double(), bias)}
    save_file(to_tensors(fitted), CORPUS / "baselines.safetensors")


def arrays():
    generator = np.random.default_rng(0)
    lengths = np.array([3, 0, 4, 2])
    x = generator.standard_normal((9, 2)).astype(np.float32)
    names = {"features": np.array(["a", "b"])}
    np.savez(CORPUS / "classes.npz", x=x, lengths=lengths, y=np.array(["p", "q", "p", "q"]))
    np.savez_compressed(CORPUS / "targets.npz", x=x, lengths=lengths, y=np.eye(4)[:, :2], **names)
    np.savez_compressed(CORPUS / "steps.npz", x=x.astype("f8"), lengths=lengths, y=np.arange(9) % 3)


def tables():
    generator = np.random.default_rng(0)
    columns = {
        "id": np.repeat(["a", "b", "c"], 4),
        "time": np.tile(np.datetime64("2024-01-01T00", "h") + np.arange(4), 3),
        "speed [m/s]": generator.standard_normal(12).round(3),
        "count": generator.integers(0, 9, 12),
        "label": np.repeat(["yes", "no", "yes"], 4),
    }
    table = pa.table({n: v.astype("M8[s]") if n == "time" else v for n, v in columns.items()})
    csv.write_csv(table, CORPUS / "table.csv")
    parquet.write_table(table, CORPUS / "snappy.parquet", row_group_size=5)
    plain = {"use_dictionary": False, "compression": "zstd", "data_page_version": "2.0"}
    parquet.write_table(table, CORPUS / "plain.parquet", **plain)
    feather.write_feather(table, CORPUS / "table.feather", compression="lz4")
    with pa.ipc.new_stream(CORPUS / "table.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=5)
    rows = [{**row, "time": str(row["time"])} for row in table.to_pylist()]
    (CORPUS / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases = ("1,2,3:4,5,6:x", "-1,0.5:2,1e3:y", "7:8:x")
    header = "# two dimensions\n@problemName small\n@timeStamps false\n@dimensions 2\n"
    (CORPUS / "classes.ts").write_text(f"{header}@classLabel true x y\n@data\n" + "\n".join(cases))
    (CORPUS / "target.ts").write_text("@univariate true\n@targetlabel true\n@data\n1,2:0.5\n3:-1\n")


if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    models()
    arrays()
    tables()
