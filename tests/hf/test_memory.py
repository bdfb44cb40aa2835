import json
import mmap

import pytest

from benchmarks import hf_memory
from stair_jax.hf import importer


def test_memory_is_told_in_bytes_and_the_mark_is_the_most():
    before = hf_memory.memory("VmRSS")
    # Pages of its own: an allocator may hand out memory that the process had already.
    with mmap.mmap(-1, 50_000_000) as held:
        held.write(bytes([1]) * len(held))
        assert 45e6 < hf_memory.memory("VmRSS") - before < 60e6
    assert hf_memory.memory("VmHWM") >= before + 45e6
    with pytest.raises(ValueError, match="has no VmNothing"):
        hf_memory.memory("VmNothing")


def test_figures_are_in_units_of_the_largest_tensor(tmp_path, monkeypatch, capsys):
    folder, extra = tmp_path / "model", {"import": 3, "export": 1}
    spec = hf_memory.SMALL
    hf_memory.write(folder, spec, hf_memory.draw(spec))
    unit = hf_memory.largest(folder)
    assert unit == spec.V * spec.D * 2 > spec.L * spec.D * spec.F * 2
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert {t.dtype for t in importer.tensors_of(folder).values()} == {"BF16"}

    def fake(direction, *_):
        parts = {"before": 10, "model": 20, "peak": 30}
        sizes = {f"{name}_bytes": n for name, n in parts.items()}
        return sizes | {"extra_bytes": extra[direction] * unit, "seconds": 1.0}

    monkeypatch.setattr(hf_memory, "measure", fake)
    out = tmp_path / "out.json"
    hf_memory.main(["--out", str(out), "--size", "small", "--folder", str(folder)])
    claims = json.loads(out.read_text())["claims"]
    assert claims["import_extra_tensors"] == {"value": 3, "target": 2, "op": "<=", "holds": False}
    assert claims["export_extra_tensors"]["holds"]
    assert "export" in capsys.readouterr().out


def test_each_direction_says_what_it_took(tmp_path, capsys):
    folder = tmp_path / "model"
    common = ["--out", "/dev/null", "--size", "small", "--folder", str(folder), "--direction"]
    hf_memory.main([*common, "make"])
    hf_memory.main([*common, "import"])
    found = json.loads(capsys.readouterr().out)
    assert found["model_bytes"] == 2 * hf_memory.SMALL.parameters
    assert found["peak_bytes"] == sum(
        found[f"{k}_bytes"] for k in ("before", "model", "extra")
    )  # what is left when the rest is known
