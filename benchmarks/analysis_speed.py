"""Time and memory of finding the axes of Llama-shaped models that are never allocated.

    python benchmarks/analysis_speed.py

Every row is a process of its own: a model of 1.2B parameters has to take less than 15 s and 1 GB, one of 80
layers and 5B parameters less than 60 s. Exit code 1 where one does not. Seconds are those of the processor
(one thread works, so on an idle machine they are also those of the clock, which stand beside them).
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LIMITS = {16: (15.0, 1e9), 80: (60.0, float("inf"))}
"""Layers -> (seconds, bytes) allowed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, choices=LIMITS)
    parser.add_argument("--config", type=Path)
    arguments = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        print('skipped: transformers is not installed, pip install "msfusion[hf]"')
        return
    if arguments.layers:
        print(json.dumps(analysed(arguments.config)))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores\n")
    print(
        "| layers | parameters | axes | cut | unknown operations | build | capture | by the clock |"
        " peak memory | allowed |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    kept = [row(layers, *limits) for layers, limits in LIMITS.items()]
    sys.exit(0 if all(kept) else 1)


def row(layers: int, seconds: float, peak: float) -> bool:
    """Print one line; returns whether it is within its limits."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({**SHAPE, "num_hidden_layers": layers}))
        command = [sys.executable, __file__, "--layers", str(layers), "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    one: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    allowed = f"{seconds:.0f} s" + (f", {peak / 1e9:.0f} GB" if peak < float("inf") else "")
    print(
        f"| {layers} | {one['parameters'] / 1e9:.2f}B | {one['axes']} | {one['cuttable']} |"
        f" {one['unknown']} |"
        f" {one['build']:.1f} s | {one['capture']:.1f} s | {one['clock']:.1f} s |"
        f" {one['peak'] / 1e9:.2f} GB | {allowed} |",
        flush=True,
    )
    return bool(one["build"] + one["capture"] <= seconds and one["peak"] <= peak)


def analysed(config: Path) -> dict[str, float]:
    from msfusion.capture import capture
    from msfusion.models import build_without_values

    clock, start = time.perf_counter(), time.process_time()
    module, example = build_without_values(f"hf:{config}", None)
    built = time.process_time()
    axes = capture(module, example).axes
    end = time.process_time()
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "axes": len(axes.axes),
        "cuttable": len(axes.cuttable),
        "unknown": len(axes.unknown),
        "build": built - start,
        "capture": end - built,
        "clock": time.perf_counter() - clock,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
