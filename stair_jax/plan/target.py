"""Machines that a run can be planned for: what they have, and meshes of devices that are not there.

A target is written CHIPxM, or CHIPxNxM for N hosts of M: "a800x8", "h100x2x8"; "cpux8" is this
machine with eight of JAX's CPU devices. Memory and its bandwidth stand in `targets/`, where their
sources are named. Links are those of NVIDIA's data sheets (NVLink of an A100 has 600 GB/s, of an
A800 400, of an H100 or H200 900, both directions together). Between hosts one port of 200 Gb/s
(Ampere) or 400 Gb/s (Hopper) a GPU is assumed, as in NVIDIA's DGX A100 and DGX H100.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from stair_jax import startup
from stair_jax.train import throughput

DESCRIPTIONS = pathlib.Path(__file__).parent / "targets"
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# Without a GPU, XLA cannot ask cuBLAS for its algorithms. Where it would let Triton compute a
# product and Triton has no way to (a join of two matrices inside it, from jax 0.11 on), it would
# ask, and compiling ends: "No supported config found for HLO gemm_fusion_dot". On a GPU it can ask,
# and chooses between the two by the clock. Here cuBLAS gets all products: what it needs beside them
# (copies, joins) is written to memory and can be seen, which is the worse of the two cases.
GPU_OPTIONS: Mapping[str, Any] = {"xla_gpu_enable_triton_gemm": False}
NO_TUNING = "--xla_gpu_autotune_level=0"  # it would run candidates on a GPU
_FORM = re.compile(r"([a-z]+[0-9]*|cpu)x([0-9]+)(?:x([0-9]+))?")
_MOST = 4096  # devices


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of device.

    Attributes:
      name: in tables.
      described: its file in `targets/`; "" for a CPU.
      link: bytes a second to the other devices of its host, one direction; None where unknown.
      network: bytes a second to other hosts.
    """

    name: str
    described: str = ""
    link: float | None = None
    network: float | None = None

    def _fact(self, name: str) -> float:
        text = (DESCRIPTIONS / f"{self.described}.txt").read_text(encoding="utf-8")
        found = re.search(rf"^\s*{name}: (\S+)$", text, re.MULTILINE)
        assert found, f"{self.described}.txt has no {name}"
        return float(found[1])

    @property
    def memory(self) -> float | None:
        """Bytes; None for a CPU, where all devices share the host's."""
        return self._fact("device_memory_size") if self.described else None

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second of its memory; None where unknown."""
        return self._fact("memory_bandwidth") if self.described else None

    @property
    def flops(self) -> float | None:
        """Dense bfloat16 operations a second; None where unknown."""
        return throughput.peak_flops(self.name)


CHIPS = {
    "a100": Chip("A100", "a100", 300e9, 25e9),
    "a800": Chip("A800", "a100", 200e9, 25e9),  # the same chip and memory, slower links
    "h100": Chip("H100", "h100", 450e9, 50e9),
    "h200": Chip("H200", "h200", 450e9, 50e9),
    "cpu": Chip("CPU"),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Hosts with devices of one kind."""

    chip: Chip
    hosts: int
    each: int  # devices of a host

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Returns the target of a setting.

        Raises:
          ValueError: for a text of another form, or a chip that is not known.
        """
        found = _FORM.fullmatch(text)
        if not found or found[1] not in CHIPS:
            raise ValueError(
                f"config.plan: {text!r}, expected CHIPxM or CHIPxNxM for N hosts of M, with one of"
                f" {list(CHIPS)}, such as a800x8"
            )
        hosts, each = (int(found[2]), int(found[3])) if found[3] else (1, int(found[2]))
        if not 0 < hosts * each <= _MOST or (found[1] == "cpu" and hosts > 1):
            raise ValueError(
                f"config.plan: {text!r}, expected 1 to {_MOST} devices, of cpu those of one host"
            )
        return cls(CHIPS[found[1]], hosts, each)

    @property
    def name(self) -> str:
        """What `parse` reads."""
        key = next(key for key, chip in CHIPS.items() if chip == self.chip)
        return f"{key}x{self.hosts}x{self.each}" if self.hosts > 1 else f"{key}x{self.each}"

    @property
    def count(self) -> int:
        """Devices."""
        return self.hosts * self.each

    @property
    def on_cpu(self) -> bool:
        """Whether its devices are this machine's CPU."""
        return not self.chip.described

    @property
    def room(self) -> float | None:
        """Bytes of a device that JAX takes in a run; None for a CPU."""
        memory = self.chip.memory
        return None if memory is None else memory * startup.MEMORY_SHARE

    @property
    def link(self) -> float | None:
        """Bytes a second of the slowest link that a collective over all devices takes."""
        return self.chip.network if self.hosts > 1 else self.chip.link

    @property
    def options(self) -> dict[str, Any]:
        """What XLA is told when it compiles."""
        return {} if self.on_cpu else dict(GPU_OPTIONS)

    def devices(self) -> Sequence[Any]:
        """Returns the devices, of which programs can be compiled and none be run on a GPU's.

        Raises:
          ValueError: where JAX cannot compile for them here.
        """
        if self.on_cpu:
            found = jax.local_devices(backend="cpu")
            if len(found) < self.count:
                raise ValueError(
                    f"config.plan: {self.name}, but JAX shows {len(found)} CPU devices here"
                )
            return found[: self.count]
        need_plugin()
        topology = topologies.get_topology_desc(
            topology_name=self.name,
            platform="cuda",
            target_config=(DESCRIPTIONS / f"{self.chip.described}.txt").read_text("utf-8"),
            topology=f"1x{self.hosts}x{self.each}",
        )
        return topology.devices

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """What asks JAX for its backend in this block hears the target's.

        So that operations choose the implementations that they would choose there.
        """
        with mock.patch.object(
            jax, "default_backend", return_value="cpu" if self.on_cpu else "gpu"
        ):
            yield


def need_plugin() -> None:
    """Raises ValueError where JAX has no plugin that compiles for CUDA."""
    if not any(importlib.util.find_spec(name) for name in PLUGINS):
        raise ValueError(
            "config.plan: JAX cannot compile for GPUs here, it needs the cuda12 or cuda13 extra"
            " (pip install -e '.[cuda12]'); cpuxN needs none"
        )
