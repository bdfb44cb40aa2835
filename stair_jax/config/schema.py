"""Every knob of the project: default, meaning with unit and source, and what it may be.

"Paper" is STAIR (arXiv 2502.02384 v2), "release" the official code thu-ml/STAIR, "ours" a choice
of this project where neither publishes a value.

Each section is a frozen dataclass, which is what the code below `run/` is given. The configuration
of a run (`config.default`), its checks, the list of all keys and the lineage are made of `KNOBS`.
Nothing here imports JAX or ml-collections: engine and trainers run where the latter is missing.
"""

from stair_jax.config.knob import Knob, Section, knobs_of
from stair_jax.config.recipe_section import RecipeConfig
from stair_jax.config.run_sections import (
    DataConfig,
    ExportConfig,
    GuidedConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
    SizeConfig,
)
from stair_jax.config.search_sections import EngineConfig, JudgeConfig, RewardConfig, SearchConfig
from stair_jax.config.training_sections import (
    BaselinesConfig,
    DpoConfig,
    DpoStageConfig,
    DpoTrainConfig,
    PairsConfig,
    PrmConfig,
    PrmTrainConfig,
    SftTrainConfig,
    TrainConfig,
)

__all__ = [
    "KNOBS",
    "SECTIONS",
    "BaselinesConfig",
    "DataConfig",
    "DpoConfig",
    "DpoStageConfig",
    "DpoTrainConfig",
    "EngineConfig",
    "ExportConfig",
    "GuidedConfig",
    "JudgeConfig",
    "MeshConfig",
    "ModelConfig",
    "PairsConfig",
    "PrmConfig",
    "PrmTrainConfig",
    "RecipeConfig",
    "RewardConfig",
    "RunConfig",
    "SearchConfig",
    "Section",
    "SftTrainConfig",
    "SizeConfig",
    "TrainConfig",
]

SECTIONS: dict[str, type[Section]] = {
    "": RunConfig,
    "mesh": MeshConfig,
    "model": ModelConfig,
    "model.size": SizeConfig,
    "data": DataConfig,
    "recipe": RecipeConfig,
    "sft.train": SftTrainConfig,
    "dpo": DpoStageConfig,
    "dpo.train": DpoTrainConfig,
    "search": SearchConfig,
    "reward": RewardConfig,
    "judge": JudgeConfig,
    "engine": EngineConfig,
    "pairs": PairsConfig,
    "prm": PrmConfig,
    "prm.train": PrmTrainConfig,
    "baselines": BaselinesConfig,
    "evaluate": GuidedConfig,
    "export": ExportConfig,
}
KNOBS: dict[str, Knob] = {  # by dotted key
    f"{section}.{name}".removeprefix("."): each
    for section, kind in SECTIONS.items()
    for name, each in knobs_of(kind).items()
}
