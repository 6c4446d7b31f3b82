"""Forecasts on real series beside simple rules; writes benchmarks/forecasting.json.

python benchmarks/forecasting.py [TRAFFIC.csv]

TRAFFIC.csv is the UCI data set "Metro Interstate Traffic Volume", hourly, with its columns
date_time, traffic_volume, temp and clouds_all. Without it the bundled airline series is run alone,
and the file keeps the other figures.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from lstm_compile.data.series.windows import Windows, split_windows, windows_of
from lstm_compile.evaluation.linear import fit_ridge
from lstm_compile.export.use.evaluate_file import evaluate_file
from lstm_compile.model.checkpoint import load_model
from lstm_compile.tasks.series_scaler import target_deviation, target_mean

SEEDS = range(5)
HERE = Path(__file__).parent
DEFAULTS = [
    *("--task", "forecast", "--time", "date_time", "--gaps", "forward", "--duplicates", "last"),
    *("--target", "traffic_volume,temp,clouds_all", "--context", "96", "--horizon", "24"),
]


def train(folder: str, *args: str) -> dict[str, object]:
    """One run of the command line; what its --json prints, without the details."""
    command = [sys.executable, "-m", "lstm_compile", "train", *args]
    result = subprocess.run(
        [*command, "--output", f"{folder}/run", "--json"], check=True, capture_output=True
    )
    found = json.loads(result.stdout)
    return {name: value for name, value in found.items() if name not in ("details", "run")}


def airline() -> dict[str, object]:
    """MAE of the last 12 months for every seed, and of the same transform with a zero network."""
    runs = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(train(folder, "airline", "--seed", str(seed)))
            if seed == 0:
                zero = zero_network(Path(folder) / "run")
    scores = [run["metrics"]["mae"] for run in runs]
    return {
        "mae": scores,
        "mean": statistics.mean(scores),
        "standard_deviation": statistics.stdev(scores),
        "zero network": zero,
        "baselines": {name: values["mae"] for name, values in runs[0]["baselines"].items()},
        "seconds": [run["seconds"] for run in runs],
    }


def zero_network(run: Path) -> float:
    """MAE of a model whose network says 0: what its transforms give alone."""
    from lstm_compile.model.checkpoint import save_model

    model = load_model(run)
    params = {
        name: value if name.startswith("scaler.") else torch.zeros_like(value)
        for name, value in model.params.items()
    }
    save_model(run / "zero.safetensors", params, *model[1:])
    return evaluate_file(run / "zero.safetensors", "airline").metrics["mae"]


def traffic(data: str) -> dict[str, object]:
    """The committed settings: traffic volume, 24 hours from 168."""
    with tempfile.TemporaryDirectory() as folder:
        found = train(folder, data, "--config", str(HERE / "traffic.toml"))
    mae = {name: values["mae"] for name, values in found["baselines"].items()}
    return {
        **found,
        "below seasonal naive": 1 - found["metrics"]["mae"] / mae["seasonal naive"],
        "below ridge": 1 - found["metrics"]["mae"] / mae["ridge on windows"],
    }


def defaults(data: str) -> dict[str, object]:
    """The defaults on three targets, beside one linear layer that all targets share."""
    with tempfile.TemporaryDirectory() as folder:
        found = train(folder, data, *DEFAULTS)
        linear = shared_linear(Path(folder) / "run", data)
    mse = {name: values["scaled_mse"] for name, values in found["baselines"].items()}
    own = found["metrics"]["scaled_mse"]
    return {
        **found,
        "shared linear layer": linear,
        "below seasonal naive": 1 - own / mse["seasonal naive"],
        "below shared linear layer": 1 - own / linear,
    }


def shared_linear(run: Path, data: str) -> float:
    """Standardised MSE of the least-squares map from context to horizon, one for all targets."""
    from lstm_compile.data.series.reader import read_series
    from lstm_compile.data.series.series_table import Shares
    from lstm_compile.data.tables.columns import TableOptions

    model = load_model(run)
    table = read_series(
        data, TableOptions(**model.training["table"]), schema=model.schema, split=Shares(0.1, 0.2)
    )
    parts = split_windows(windows_of(table, model.config))
    mean, scale = target_mean(parts["train"]), target_deviation(parts["train"])

    def rows(windows: Windows, begin: int, end: int) -> torch.Tensor:
        index = windows.origins[:, None] + torch.arange(begin, end)
        return ((windows.x[index][..., : len(mean)] - mean) / scale).double().transpose(1, 2)

    context, horizon = model.config.context, model.config.horizon
    x, y = rows(parts["train"], -context, 0), rows(parts["train"], 0, horizon)
    fitted = fit_ridge(x.flatten(0, 1), y.flatten(0, 1), 1e-3)
    forecast = rows(parts["test"], -context, 0) @ fitted.weight + fitted.bias
    truth = ((parts["test"].y - mean) / scale).double().transpose(1, 2)
    return float((forecast - truth).square().nanmean())


def main(args: list[str]) -> None:
    """Print each result and write benchmarks/forecasting.json."""
    results: dict[str, object] = {"airline": airline()}
    if args:
        results |= {"traffic": traffic(args[0]), "defaults": defaults(args[0])}
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        results["peak memory of a run, MB"] = round(largest / 1000)
    for name, values in results.items():
        print(name, json.dumps(values), flush=True)
    file = HERE / "forecasting.json"
    results = json.loads(file.read_text()) | results
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
