"""The machine in general terms, so that a reader can judge the figures."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from lstm_compile.devices import package_versions

VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, device and the versions of what computes."""
    on_linux = hasattr(os, "sched_getaffinity")  # the cores that this process may use
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": _versions(device),
    }


def described(facts: dict[str, Any]) -> str:
    """What `machine` gives, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    device = "" if facts["device"] == "cpu" else f"{facts['device']}, "
    cores = f"{facts['cores']} cores ({facts['processor']}), {facts['threads']} threads"
    return f"{device}{cores}, {versions}"


def _processor() -> str:
    try:
        match = re.search(r"vendor_id\s*: (\w+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    maker = VENDORS.get(match[1], match[1]) if match else platform.machine()
    return f"{maker}, {torch.backends.cpu.get_cpu_capability()}"


def _versions(device: torch.device) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return versions | package_versions("onnxruntime")
