"""Training tokens per second on CPU: our step against PyTorch's on the same Llama.

python -m benchmarks.train_vs_torch --out FILE.json

Same weights (exported by the product), same rows in the same padded batches, same losses and
optimiser; the losses of the first steps must agree before anything is timed:
  ours   the product's step on a mesh of `--devices` CPU devices, one as in configs/tiny.py
  one    the same on one CPU device, where `--devices` says more
  torch  `benchmarks.torch_trainer` with two threads
Rows are the miniature's teacher rows; pairs are made of two answers, cut behind their first third.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers

from benchmarks import harness, torch_trainer
from benchmarks.harness import Claim, Figures, Round
from configs import tiny
from stair_jax import mesh as mesh_lib
from stair_jax import text
from stair_jax.config.schema import DpoConfig, TrainConfig
from stair_jax.data import examples
from stair_jax.data.batches import TrainingBatch
from stair_jax.data.dataset import Dataset
from stair_jax.data.examples import PairExample, SftExample
from stair_jax.data.pair_batches import DpoData
from stair_jax.data.sft_batches import SftData
from stair_jax.data.trajectories import score_batches
from stair_jax.hf import exporter
from stair_jax.miniature import tokenizer
from stair_jax.model import transformer
from stair_jax.model.spec import Spec
from stair_jax.run import rows as rows_lib
from stair_jax.run.workdir import train_config
from stair_jax.train import optimizer
from stair_jax.train import step as step_lib
from stair_jax.train.logprobs import Scorer
from stair_jax.train.losses import Dpo, Loss, Sft

THREADS = 2  # of torch
LR = 1e-4
AGREE = 1e-4  # nats, of the first losses
TASKS = ("sft", "dpo")
ROWS = 1500  # teacher rows that batches are drawn from
# Sizes of the models; what is not named is the miniature's.
MODELS: dict[str, dict[str, Any]] = {
    "miniature": {},
    "large": {"L": 8, "D": 512, "N": 8, "K": 4, "H": 64, "F": 1408, "V": 8192, "vocab": 8192},
}
LARGE = {"batch": 8, "buckets": (192, 256)}  # of its random rows

Batches = Sequence[TrainingBatch]  # of consecutive steps, [A, m, ...] each


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    harness.run(_options(argv), measure, tables)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("--models", default="miniature,large", help="comma-separated")
    parser.add_argument(
        "--devices", type=int, default=1, help="of CPU, for ours (default: %(default)s)"
    )
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument(
        "--steps", type=int, default=16, help="of the miniature, a repetition; of large a quarter"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=2.0,
        help="of each of the four comparisons, compiling apart",
    )
    options = harness.parse(parser, argv)
    if unknown := [name for name in options.models.split(",") if name not in MODELS]:
        parser.error(f"--models: {unknown} not in {list(MODELS)}")
    if min(options.devices, options.repetitions) < 1 or options.steps < 4:
        parser.error("expected 1 device, 1 repetition and 4 steps or more")
    return options


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Claim]]:
    """Returns all figures and the claims.

    Raises:
      ValueError: where the sides do not compute the same.
    """
    torch.set_num_threads(THREADS)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    mesh_lib.show_cpus((options.devices, 1, 1), 1)
    found = {
        f"{model}/{task}": compare(Setup.of(model, task), options)
        for model in options.models.split(",")
        for task in TASKS
    }
    figures = {
        "benchmark": "train_vs_torch",
        "machine": harness.machine("torch", "transformers") | {"torch_threads": THREADS},
        "settings": {"devices": options.devices, "lr": LR, "agree": AGREE},
        "comparisons": found,
        "disturbed": any(
            side["others"] > harness.DISTURBED
            for one in found.values()
            for each in one["rounds"]
            for side in each.values()
        ),
    }
    claims = {
        f"{name.replace('/', '_')}_vs_torch": Claim(one["ratios"]["ours_vs_torch"], ">=", 1.0)
        for name, one in found.items()
    }
    return figures, claims


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model and the batches that it is trained on."""

    task: str
    spec: Spec
    params: Any
    config: TrainConfig
    loss: Loss
    data: Dataset
    steps_share: int  # of the steps asked for, one in so many is taken

    @classmethod
    def of(cls, model: str, task: str) -> "Setup":
        """Returns a comparison's setup; the same at every call."""
        c = tiny.get_config()
        codec = text.Codec(words := tokenizer.build(), text.template_for(words, "llama"), "")
        size = c.model.size.to_dict() | {"V": len(words), "vocab": len(words)} | MODELS[model]
        spec = Spec(
            **size, rope_scaling=None, qkv_bias=False, qk_norm=False, tied=True, family="llama"
        )
        config = dataclasses.replace(
            train_config(c, task),
            remat="none",
            compute_dtype="float32",
            eval_rows=0,
            epochs=1.0,
            **(LARGE if model == "large" else {}),
        )
        rows = (
            random_rows(spec.vocab)
            if model == "large"
            else examples.sft_examples(rows_lib.for_sft(c)[:ROWS], codec)
        )
        params = jax.jit(functools.partial(transformer.init, spec))(jax.random.key(0))
        frame = {"seed": 0, "pad_id": codec.pad_id, "row_shards": 2}
        scorer = Scorer.of(spec, config)
        if task == "sft":
            data: Dataset = SftData(rows, config, **frame)
            loss: Loss = Sft(scorer)
        else:
            own = dataclasses.replace(DpoConfig.of(c.dpo), anchors_per_pair=0.0)
            pairs = DpoData(pairs_of(rows), (), config, own, **frame)
            data = pairs.with_reference(reference(scorer, params, pairs, config))
            loss = Dpo.of(scorer, own)
        return cls(task, spec, params, config, loss, data, 4 if model == "large" else 1)

    def batches(self, count: int) -> Batches:
        """Returns the first batches without an absent row, for whom sides would differ."""
        steps = (self.data.batch_at(i) for i in range(self.data.steps_per_epoch))
        whole = [batch for batch in steps if np.all(batch.weight > 0)]
        if len(whole) < count:
            raise ValueError(f"--steps: {count} wanted, found rows for {len(whole)}")
        return whole[:count]


def random_rows(vocab: int) -> list[SftExample]:
    """Returns rows of random tokens and of lengths between 128 and 256; 0 is the padding's."""
    rng = np.random.default_rng(0)
    rows = []
    for i, length in enumerate(rng.integers(128, 257, 400)):
        ids = tuple(rng.integers(1, vocab, length).tolist())
        rows.append(SftExample(id=str(i), prompt=ids[: length // 4], response=ids[length // 4 :]))
    return rows


def pairs_of(rows: Sequence[SftExample]) -> list[PairExample]:
    """Returns pairs: a row's answer behind its first third, against the rest of the next one's."""
    out = []
    for one, other in zip(rows[::2], rows[1::2], strict=False):
        third, rest = len(one.response) // 3, other.response[len(other.response) // 3 :]
        out.append(
            PairExample(
                id=one.id,
                prompt=one.prompt,
                prefix=one.response[:third],
                chosen=one.response[third:],
                rejected=rest,
                depth=1,
            )
        )
    return out


def reference(scorer: Scorer, params: Any, data: DpoData, config: TrainConfig) -> dict[str, Any]:
    """Returns the log-probs of every trajectory under the starting weights."""
    score, table = jax.jit(scorer), {}
    batches = score_batches(data.trajectories(), config, pad_id=data.pad_id, row_shards=1)
    for keys, batch in batches:
        logp = np.asarray(score(params, batch.tokens, batch.loss_mask).logp)
        for key, row, mask in zip(keys, logp, batch.loss_mask, strict=False):
            table[key] = row[mask]
    return table


def compare(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the rounds of all sides, and their ratios."""
    batches = setup.batches(options.steps // setup.steps_share)
    sides: dict[str, Side] = {"ours": Ours(setup, options.devices)}
    if options.devices > 1:
        sides["one"] = Ours(setup, 1)
    sides["torch"] = Torch(setup)
    losses = {name: side(batches) for name, side in sides.items()}  # compiles, warms up
    apart = {name: abs(each[0] - losses["torch"][0]) for name, each in losses.items()}
    harness.say(f"{setup.task}: first losses {losses['torch'][0]:.6f}, apart by {apart}")
    if max(apart.values()) > AGREE:
        raise ValueError(f"the sides' first losses differ by {apart}, expected {AGREE} at most")
    measures = {name: functools.partial(timed, side, batches) for name, side in sides.items()}
    rounds = harness.alternate(measures, options.repetitions, seconds=60 * options.minutes)
    return {
        "parameters": setup.spec.parameters,
        "batch": setup.config.batch,
        "steps": len(batches),
        "buckets": list(setup.config.buckets),
        "losses": losses,
        "rounds": rounds,
        "medians": {
            name: {figure: harness.median(rounds, name, figure) for figure in rounds[0][name]}
            for name in sides
        },
        "ratios": ratios(rounds),
    }


Side = Callable[[Batches], list[float]]  # trains on batches, returns their losses


class Ours:
    """The product's step; the state goes on from run to run."""

    def __init__(self, setup: Setup, devices: int):
        self._loss, self._tx = setup.loss, optimizer.of(setup.config)
        self._mesh = mesh_lib.make((devices, 1, 1), jax.devices()[:devices])
        with jax.set_mesh(self._mesh):
            own = jax.tree.map(np.array, setup.params)  # a step consumes what it is given
            params = step_lib.on_mesh(own, self._mesh)
            self._state = step_lib.init(params, self._tx, self._mesh)

    def __call__(self, batches: Batches) -> list[float]:
        """Dispatches one step after another, as the loop does, and waits for the last."""
        out = []
        with jax.set_mesh(self._mesh):
            for batch in batches:
                self._state, metrics = self._step(batch)
                out.append(metrics["loss"])
            return [float(loss) for loss in out]

    def _step(self, batch: TrainingBatch) -> Any:
        placed = step_lib.place(batch, self._mesh)
        return step_lib.step(self._state, placed, LR, loss=self._loss, tx=self._tx)


class Torch:
    """PyTorch on the exported weights."""

    def __init__(self, setup: Setup):
        config = setup.config
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model"
            exporter.save(
                path, setup.spec, setup.params, None, end_ids=[1], dtype="float32"
            )  # a model without words
            self._trainer = torch_trainer.Trainer(
                torch_trainer.load(path),
                beta1=config.beta1,
                beta2=config.beta2,
                eps=config.eps,
                weight_decay=config.weight_decay,
                clip_norm=config.clip_norm,
            )
        self._loss = setup.loss

    def __call__(self, batches: Batches) -> list[float]:
        """Takes all micro-batches of a step at once."""
        return [self._step(batch.joined()) for batch in batches]

    def _step(self, batch: Any) -> float:
        if isinstance(self._loss, Dpo):
            beta, coef = self._loss.beta, self._loss.sft_coef
            return self._trainer.dpo(batch, LR, beta=beta, sft_coef=coef)
        return self._trainer.sft(batch, LR)


def timed(side: Side, batches: Batches, turn: int) -> Figures:
    """Returns the speed of a side: of tokens, and of positions with their padding."""
    with harness.Watch() as watch:
        side(batches)
    tokens = sum(batch.real_tokens() for batch in batches)
    positions = sum(batch.tokens.size for batch in batches)
    return {
        "tokens_per_s": tokens / watch.seconds,
        "positions_per_s": positions / watch.seconds,
        "step_ms": 1e3 * watch.seconds / len(batches),
        "others": watch.others,
    }


def ratios(rounds: Sequence[Round]) -> dict[str, float]:
    """Returns ours over each other side, in tokens a second."""
    return {
        f"ours_vs_{side}": harness.ratio(rounds, "tokens_per_s", "ours", side)
        for side in rounds[0]
        if side != "ours"
    }


def tables(figures: Mapping[str, Any]) -> str:
    """Returns medians, a row a comparison and side."""
    rows = []
    for name, one in figures["comparisons"].items():
        for side, medians in one["medians"].items():
            share = one["ratios"].get(f"ours_vs_{side}")
            rows.append((f"{name} {side}", *medians.values(), share))
    columns = ("comparison", "tokens/s", "positions/s", "ms a step", "others", "ours over it")
    out = harness.table("Training on CPU, medians of alternating repetitions", columns, rows)
    if figures["disturbed"]:
        out += "\n\nOther processes worked during the measurement: do not trust these figures."
    return out


if __name__ == "__main__":
    if os.environ.get("GLIBC_TUNABLES") != harness.TUNABLES:  # for both libraries
        again = [sys.executable, "-m", "benchmarks.train_vs_torch", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {"GLIBC_TUNABLES": harness.TUNABLES})
    main()
