"""Host memory of import and export of a Hugging Face checkpoint, beyond the model itself.

Each direction runs in a process of its own, whose high-water mark of resident memory is read when
it is done. What the model's arrays take is known, for on CPUs the devices' memory is the host's;
what the process had taken before the work began is subtracted too. What is left is told in units
of the largest tensor, as it lies in the file.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax

from benchmarks import harness
from benchmarks.harness import Claim
from stair_jax.hf import exporter, importer
from stair_jax.model import transformer
from stair_jax.model.spec import RopeScaling, Spec

# Llama 3.2 1B, as its config.json says.
LLAMA_1B = Spec(
    L=16,
    D=2048,
    N=32,
    K=8,
    H=64,
    F=8192,
    V=128_256,
    vocab=128_256,
    eps=1e-5,
    theta=5e5,
    rope_scaling=RopeScaling(factor=32.0, low=1.0, high=4.0, original=8192),
    qkv_bias=False,
    qk_norm=False,
    tied=True,
    family="llama",
)
SMALL = Spec(
    L=2,
    D=64,
    N=4,
    K=2,
    H=16,
    F=96,
    V=4096,
    vocab=4096,
    eps=1e-5,
    theta=1e4,
    rope_scaling=None,
    qkv_bias=False,
    qk_norm=False,
    tied=True,
    family="llama",
)
SIZES = {"1b": LLAMA_1B, "small": SMALL}
DTYPE = "bfloat16"  # of the files and of the arrays
SHARD_BYTES = 1_500_000_000  # two files of the 1B model
TARGET = 2.0  # largest tensors

_STATUS = pathlib.Path("/proc/self/status")


def memory(key: str) -> int:
    """Returns bytes of this process: VmRSS that it holds, VmHWM that it has held at most."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{_STATUS} has no {key}")


def draw(spec: Spec) -> dict:
    """Returns random weights in the benchmark's dtype, one after the other."""
    shapes = jax.eval_shape(functools.partial(transformer.init, spec), jax.random.key(0))
    return jax.tree.map(
        lambda x: jax.random.uniform(jax.random.key(x.size), x.shape, DTYPE), shapes
    )


def write(folder: pathlib.Path, spec: Spec, params: dict) -> None:
    """Exports a model without tokenizer."""
    limit = min(SHARD_BYTES, spec.parameters)  # at least two files of two bytes a parameter
    exporter.save(folder, spec, params, None, end_ids=[0], dtype=DTYPE, shard_bytes=limit)


def child(direction: str, folder: pathlib.Path, spec: Spec) -> dict[str, float]:
    """Returns what one direction takes in this process, in bytes.

    Import is measured from the start. To export, the model is imported first, and the mark of that
    is forgotten.
    """
    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # the backend and its threads
    before = memory("VmRSS")
    if direction == "import":
        with harness.Watch() as watch:
            params = importer.load_onto(folder, dtype=DTYPE)[1]
        model = sum(x.nbytes for x in jax.tree.leaves(params))
    else:
        params = importer.load_onto(folder, dtype=DTYPE)[1]
        before, model = memory("VmRSS"), 0
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
        with tempfile.TemporaryDirectory() as scratch, harness.Watch() as watch:
            write(pathlib.Path(scratch) / "model", spec, params)
    peak = memory("VmHWM")
    return {
        "before_bytes": before,
        "model_bytes": model,
        "peak_bytes": peak,
        "extra_bytes": peak - before - model,
        "seconds": watch.seconds,
    }


def measure(direction: str, folder: pathlib.Path, size: str) -> dict[str, float]:
    """Returns `child` of a fresh process."""
    return json.loads(_part(direction, folder, size).splitlines()[-1])


def _part(direction: str, folder: pathlib.Path, size: str) -> str:
    """Runs one part in a fresh process and returns what it prints."""
    code = [
        sys.executable,
        "-m",
        "benchmarks.hf_memory",
        "--out",
        os.devnull,
        "--direction",
        direction,
        "--folder",
        str(folder),
        "--size",
        size,
    ]
    return subprocess.run(code, check=True, stdout=subprocess.PIPE, text=True).stdout


def largest(folder: pathlib.Path) -> int:
    """Returns the bytes of a checkpoint's largest tensor, in its file."""
    sizes = []
    for tensor in importer.tensors_of(folder).values():
        count = importer.FLOATS[tensor.dtype].itemsize
        for n in tensor.shape:
            count *= n
        sizes.append(count)
    return max(sizes)


def run(folder: pathlib.Path, options: argparse.Namespace) -> None:
    """Writes a checkpoint where there is none, measures both directions and reports."""
    spec = SIZES[options.size]
    if not (folder / "config.json").exists():
        _part("make", folder, options.size)
    unit, files = largest(folder), len(list(folder.glob("*.safetensors")))
    found = {way: measure(way, folder, options.size) for way in ("import", "export")}
    for figures in found.values():
        figures["extra_tensors"] = figures["extra_bytes"] / unit
    claims = {
        f"{way}_extra_tensors": Claim(figures["extra_tensors"], "<=", TARGET)
        for way, figures in found.items()
    }
    rows = [
        (
            way,
            *(figures[f"{key}_bytes"] / 1e6 for key in ("before", "model", "peak", "extra")),
            figures["extra_tensors"],
            figures["seconds"],
        )
        for way, figures in found.items()
    ]
    print(
        harness.table(
            f"Host memory in MB: {spec.parameters / 1e9:.2f}B parameters in {DTYPE},"
            f" {files} files, largest tensor {unit / 1e6:.0f} MB",
            ("direction", "before", "model", "peak", "extra", "tensors", "seconds"),
            rows,
        )
    )
    print(harness.claims_table(claims))
    harness.write(
        options.out,
        {
            "machine": harness.machine("safetensors"),
            "parameters": spec.parameters,
            "dtype": DTYPE,
            "files": files,
            "largest_tensor_bytes": unit,
            "directions": found,
        },
        claims,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, or does one part of it where `--direction` says which."""
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        metavar="DIR",
        help="a checkpoint of that size, written there where there is none; "
        "default: a temporary one",
    )
    parser.add_argument("--direction", choices=("make", "import", "export"), help=argparse.SUPPRESS)
    options = harness.parse(parser, argv)
    spec = SIZES[options.size]
    if options.direction == "make":
        write(options.folder, spec, draw(spec))
    elif options.direction:
        print(json.dumps(child(options.direction, options.folder, spec)))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            run(options.folder or pathlib.Path(scratch) / "model", options)


if __name__ == "__main__":
    main()
