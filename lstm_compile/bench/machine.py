"""The machine in general terms: what a reader needs to judge the figures."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, device and the versions of what computes."""
    return {
        "device": _device_name(device),
        "cores": _cores(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": _versions(device),
    }


def described(found: dict[str, Any]) -> str:
    """What `machine` gives, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    device = "" if found["device"] == "cpu" else f"{found['device']}, "
    cores = f"{found['cores']} cores ({found['processor']}), {found['threads']} threads"
    return f"{device}{cores}, {versions}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        match = re.search(r"vendor_id\s*: (\w+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    maker = VENDORS.get(match[1], match[1]) if match else platform.machine()
    return f"{maker}, {torch.backends.cpu.get_cpu_capability()}"


def _versions(device: torch.device) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    try:
        return {**found, "onnxruntime": metadata.version("onnxruntime")}
    except metadata.PackageNotFoundError:
        return found
