"""What made each artefact of a run: settings, parents, content hash. Guards against mixing."""

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from stair_jax import records
from stair_jax.config import Config

_SFT = ("data.sft", "data.sft_rows", "data.format", "data.split", "judge.templates")
_PREFERENCES = (
    "data.preferences", "data.preference_rows", "data.preferences_format", "data.split",
    "baselines.buckets",
)  # fmt: skip
# Sections and keys of the configuration that an artefact's content depends on, by stage; those of
# stage baselines have a name of their own behind it.
_DEPENDS = {
    "sft": ("seed", "model", *_SFT, "sft"),
    "search": (
        "seed", "model", "data.prompts", "data.round_prompts", "data.split", "search", "reward",
        "judge", "engine",
    ),
    "pairs": ("seed", "pairs"),
    "dpo": ("seed", "model", "dpo"),
    "prm": (
        "seed", "model", "prm", "data.prompts", "data.split", "search", "reward", "judge", "engine",
    ),
    "baselines.start": ("seed", "model", *_SFT, "sft", "baselines.buckets"),
    "baselines.sft": ("seed", "model", *_PREFERENCES, "sft", "baselines.sft_lr"),
    "baselines.dpo": ("seed", "model", *_PREFERENCES, "dpo"),
    "baselines.sacpo": ("seed", "model", *_PREFERENCES, "dpo", "baselines.sacpo_betas"),
    "baselines.candidates": (
        "seed", "model", "data.prompts", "data.round_prompts", "data.split", "judge",
        "search.reward", "search.max_rollout_tokens", "reward", "engine", "baselines.candidates",
        "baselines.temperature", "baselines.top_p",
    ),
    "baselines.self-rewarding": ("seed", "model", "dpo", "baselines.buckets"),
    "evaluate": ("model", "evaluate.split", "evaluate.max_tokens", "engine"),
    "evaluate.guided": ("seed", "model", "evaluate", "engine", "search.max_depth"),
    "evaluate.mcts": (
        "seed", "model", "evaluate", "engine",
        *(f"search.{key}" for key in ("num_children", "c", "max_depth", "score", "prior",
          "reselect_terminal", "ties", "max_step_tokens")),
    ),
    "export": ("model",),
}  # fmt: skip
# Keys that move no result, or only how a result is stored.
_FREE = (
    "search.trees_in_flight", "search.export_official", "mesh.replicas", "evaluate.benchmarks",
    "evaluate.search", "evaluate.searched", "compile_cache", "deterministic",
    *(f"judge.{key}" for key in ("endpoint", "concurrency", "timeout", "retries", "cache")),
    *(f"{stage}.train.{key}" for stage in ("sft", "dpo", "prm")
      for key in ("micro_tokens", "head_chunk", "remat", "save_every", "keep", "max_skipped")),
)  # fmt: skip


def settings_of(config: Config, stage: str) -> dict[str, Any]:
    """Returns the settings that the results of `stage` depend on, by dotted key, as JSON types."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if hasattr(value, "items"):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)
        elif prefix not in _FREE and _covers(_DEPENDS[stage], prefix):
            found[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", config)
    return found


def _covers(keys: tuple[str, ...], key: str) -> bool:
    return any(key == k or key.startswith(k + ".") for k in keys)


class Lineage:
    """The artefacts of a workdir, by name ("sft", "round-1/trees", ...), kept in lineage.json."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.entries = json.loads(path.read_text(encoding="utf-8"))

    def finished(self, name: str) -> bool:
        """Returns whether the artefact is whole."""
        return bool(self.entries.get(name, {}).get("finished"))

    def begin(
        self, name: str, stage: str, settings: Mapping[str, Any], parents: tuple[str, ...]
    ) -> None:
        """Notes that an artefact is being made, or goes on being made.

        Raises:
          ValueError: where it was begun with other settings or from other parents, by name.
        """
        made_of = {parent: self.entries[parent]["hash"] for parent in parents}
        if name in self.entries:
            self.check(name, settings)
            if self.entries[name]["parents"] != made_of:
                raise ValueError(
                    f"{self.path}: {name} was begun from {self.entries[name]['parents']}, found"
                    f" {made_of} now; use a new --config.workdir"
                )
            return
        self.entries[name] = {
            "stage": stage, "finished": False, "begun": _now(), "settings": dict(settings),
            "parents": made_of,
        }  # fmt: skip
        self._write()

    def check(self, name: str, settings: Mapping[str, Any], prefix: str = "") -> None:
        """Refuses settings that differ from those an artefact was made with.

        Args:
          name: of the artefact.
          settings: as `settings_of` gives them now.
          prefix: only keys that start with it are compared.

        Raises:
          ValueError: naming the first key, both values, and the way out.
        """
        made = self.entries[name]["settings"]
        for key in sorted(made.keys() | settings.keys()):
            if key.startswith(prefix) and made.get(key) != settings.get(key):
                raise ValueError(
                    f"config.{key}: {settings.get(key)!r}, but {name} was made with"
                    f" {made.get(key)!r}; keep that value or use a new --config.workdir"
                )

    def finish(self, name: str, digest: str, **facts: Any) -> None:
        """Notes that an artefact is whole, with its content hash and facts worth keeping."""
        self.entries[name] |= {"finished": True, "ended": _now(), "hash": digest, **facts}
        self._write()

    def _write(self) -> None:
        records.write_json(self.path, self.entries)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
