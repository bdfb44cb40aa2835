"""Hours and disk of a whole run on a target: arithmetic over assumptions that are printed with it.

Shape letters: see `stair_jax.model.spec.Spec`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from stair_jax.config import Config
from stair_jax.config.sources import is_world
from stair_jax.config.stages import DPO, EVALUATE, EXPORT, PRM, SEARCH, SFT
from stair_jax.config.words import split_csv
from stair_jax.model.footprint import ITEM, Amount, keys_a_token
from stair_jax.model.spec import Spec
from stair_jax.plan.sizes import Model
from stair_jax.plan.target import Target
from stair_jax.run import models, needs
from stair_jax.run.search_sizes import tree_bytes
from stair_jax.run.workdir import Run, engine_config, train_config
from stair_jax.train.throughput import Work, step_flops


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What no file here says. Each has its source; the first five are of real models' text.

    Attributes:
      prompt: tokens.
      response: tokens (paper table 5: 523 to 608 of AlpacaEval and StrongREJECT after SFT and DPO).
      step: tokens of a step: a response has about five.
      nodes_an_iteration: nodes of a tree over iterations. Finished branches are walked into again:
        the miniature has .14 (benchmarks/results/search_vs_transformers_2_cores.json); longer
        answers branch more.
      verdict: tokens of a judge's verdict, of which a rollout gets two.
      pairs: of a tree (paper B.4: .47 s a pair and 15 s a tree).
      decode_share: of the time that weights and keys allow one after the other (one H100: .81).
      prefill_share: of the products' peak (one H100: .63).
      train_share: of the products' peak (one H100 with a 1B model: .46).
      busy: share of slots that decode (design: at least .9).
      benchmark: prompts of a benchmark.
    """

    prompt: int = 120
    response: int = 550
    step: int = 110
    nodes_an_iteration: float = 0.5
    verdict: int = 150
    pairs: float = 10.0
    decode_share: float = 0.8
    prefill_share: float = 0.6
    train_share: float = 0.45
    busy: float = 0.9
    benchmark: int = 500


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of a whole run.

    Attributes:
      hours: by stage; empty where the target's rates are not known.
      rows: what is counted, by name.
      disk: bytes, by what they hold.
      assumed: what the figures rest on.
    """

    hours: Mapping[str, float]
    rows: Mapping[str, int]
    disk: Mapping[str, Amount]
    assumed: Assumptions


def estimate(
    run: Run, model: Model, target: Target, assumed: Assumptions = Assumptions()
) -> Estimate:
    """Returns the hours and bytes of a run's stages."""
    c = run.config
    rows = rows_of(c, assumed)
    wanted = split_csv(c.stages)
    hours: dict[str, float] = {}
    if target.chip.flops and target.chip.bandwidth:
        speed = _Speed(run, model.spec, target, assumed)
        seconds = {
            SFT.name: speed.training(SFT.name, rows["sft rows"] * c.sft.train.epochs, sides=1),
            SEARCH.name: rows["prompts"] * speed.tree(c),
            DPO.name: speed.training(DPO.name, rows["pairs"] * c.dpo.train.epochs, sides=2)
            + speed.reading(2 * rows["pairs"]),
            PRM.name: speed.training(PRM.name, rows["reward pairs"] * c.prm.train.epochs, sides=2),
            EVALUATE.name: rows["answers"] * speed.answer(),
        }
        hours = {name: s / 3600 for name, s in seconds.items() if name in wanted}
    return Estimate(hours, rows, _disk(run, model, rows["prompts"]), assumed)


def rows_of(c: Config, assumed: Assumptions) -> dict[str, int]:
    """Returns how many rows a run has; of files that are not here, as many as the paper's."""
    sft = c.data.sft_rows or (0 if is_world(c.data.sft) else _lines(c.data.sft))
    prompts = 0
    for number in range(1, c.rounds + 1):
        own = c.data.round_prompts or _lines(c.data.prompts.replace("{round}", str(number)))
        prompts += own or sum(
            sizes[min(number, len(sizes)) - 1]
            for sizes in (c.recipe.round_safety, c.recipe.round_helpful, c.recipe.round_jailbreak)
        )
    strategies = len(split_csv(c.evaluate.search))
    each = c.evaluate.rows or assumed.benchmark
    asked = len(split_csv(c.evaluate.benchmarks)) * each * (c.rounds + 2 + 8 * (strategies - 1))
    return {
        "sft rows": sft or sum(c.recipe.cot),
        "prompts": prompts,
        "pairs": round(prompts * assumed.pairs),
        "reward pairs": prompts * (c.prm.pairs_per_tree or 3),
        "answers": asked,
    }


def _lines(name: str) -> int:
    """Returns the rows of a .jsonl file that is here; 0 of anything else."""
    path = pathlib.Path(name)
    if path.suffix != ".jsonl" or not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


class _Speed:
    """Seconds of a piece of work on all devices of a target."""

    def __init__(self, run: Run, spec: Spec, target: Target, assumed: Assumptions):
        self._run, self._spec, self._target, self._assumed = run, spec, target, assumed
        self._replicas, self._tensor = len(models.engine_places(run)), run.mesh.shape["tensor"]
        self._engine = engine_config(run.config)

    @property
    def _peak(self) -> float:
        return (self._target.chip.flops or 0.0) * self._run.mesh.size

    def training(self, stage: str, rows: Amount, *, sides: int) -> float:
        """Returns what a stage's passes forward and backward over so many rows take."""
        a = self._assumed
        length = a.prompt + a.response
        keys = length * (length + 1) // 2
        one = step_flops(self._spec, Work(length, keys, a.response))
        again = 4 / 3 if train_config(self._run.config, stage).remat == "full" else 1.0
        return rows * sides * one * again / (self._peak * a.train_share)

    def reading(self, rows: Amount) -> float:
        """Returns what forward passes over so many rows take."""
        a = self._assumed
        return self._prefill(rows * (a.prompt + a.response))

    def _prefill(self, tokens: Amount) -> float:
        flops = 2 * self._spec.matrix_parameters(head=False) * tokens
        return flops / (self._peak * self._assumed.prefill_share)

    def _decode(self, tokens: Amount) -> float:
        """Returns what so many tokens take, weights and keys read one after the other."""
        a, spec, e = self._assumed, self._spec, self._engine
        item = ITEM[e.dtype]
        weights = spec.matrix_parameters(head=True) * item
        context = a.prompt + a.response / 2
        keys = e.slots * context * keys_a_token(spec, e.dtype)
        seconds = (weights + keys) / self._tensor / (self._target.chip.bandwidth or 1.0)
        flops = 2 * spec.matrix_parameters(head=True) * e.slots / self._tensor
        seconds = max(seconds, flops / (self._target.chip.flops or 1.0)) / a.decode_share
        return tokens * seconds / (e.slots * a.busy * self._replicas)

    def tree(self, c: Config) -> float:
        """Returns what a tree takes: its steps, a rollout of each node, and their verdicts."""
        a = self._assumed
        nodes = c.search.iterations * a.nodes_an_iteration
        decoded = nodes * (a.step + a.response / 2)
        read = float(a.prompt)
        if "self" in (c.judge.safety, c.judge.helpfulness):
            verdicts = 2 * nodes * c.judge.samples
            decoded += verdicts * a.verdict
            read += verdicts * (a.prompt + a.response)
        return self._decode(decoded) + self._prefill(read)

    def answer(self) -> float:
        """Returns what an answer to a prompt takes."""
        return self._decode(self._assumed.response) + self._prefill(self._assumed.prompt)


def _disk(run: Run, model: Model, prompts: int) -> dict[str, Amount]:
    """Returns the bytes that the wanted stages write."""
    c = run.config
    found: dict[str, Amount] = dict.fromkeys(("checkpoints", "trees", "export"), 0.0)
    for name in split_csv(c.stages):
        if name in (SFT.name, DPO.name, PRM.name):
            times = c.rounds if name == DPO.name else 1
            one = needs.checkpoint_bytes(c, name, model.spec, len(model.new_rows))
            found["checkpoints"] += times * one
        found["trees"] += prompts * tree_bytes(c) if name == SEARCH.name else 0
        found["export"] += model.spec.parameters * 2.0 if name == EXPORT.name else 0
    return {name: size for name, size in found.items() if size}
