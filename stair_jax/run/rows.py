"""Where questions and teacher rows come from: a world, files of the user's, or the hub."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.config import Config
from stair_jax.config.sources import PREPARED, is_world
from stair_jax.data import formats, sources
from stair_jax.evals.benchmarks import named_graders, own_prompts
from stair_jax.judges.rubrics import SIDES
from stair_jax.records import Preference, Prompt, SftRow
from stair_jax.run import hashes, judges, prepared, worlds
from stair_jax.text import OUTPUT, OUTPUT_END, Turn, final_answer

log = logging.getLogger(__name__)

_ID_DIGITS = 16  # of a hash: among a million questions two alike by chance are one in 10^7
_SAFETY_SOURCE = "saferlhf"  # in the name of a row's source
_BETWEEN_ROUNDS = 1_000_003  # seeds; runs have small ones


def for_round(config: Config, number: int) -> list[Prompt]:
    """Returns the prompts of a round.

    Raises:
      ValueError: for a file without such rows, naming file, row and key.
    """
    count = config.data.round_prompts
    if world := worlds.of(config.data.prompts):
        return world.round_prompts(number, config.seed, count)
    return _from_file(config, str(number), count)


def count(config: Config, number: int) -> int:
    """Returns how many rows of prompts a round has, repeated ones included; as `for_round`."""
    data = config.data
    if is_world(data.prompts) or data.round_prompts:
        return data.round_prompts
    if data.prompts == PREPARED and not _source(config, str(number)).is_file():
        return prepared.size_of_round(config, number)
    return len(_located(config, str(number), 0))


def for_prm(config: Config) -> tuple[list[Prompt], dict[str, str]]:
    """Returns the further prompts of the reward model, `prm.prompts` of them; as `for_round`.

    With them a teacher's responses by prompt id, where `prm.demonstrations` asks for them: a file's
    rows then need a "response". In the name of a file, {round} becomes "prm".
    """
    count, shown = config.prm.prompts, config.prm.demonstrations
    if world := worlds.of(config.data.prompts):
        lessons = world.prm_lessons(config.seed, count)
        asked = [prompt for prompt, _ in lessons]
        return asked, {prompt.id: text for prompt, text in lessons} if shown else {}
    located = _further(config, count)
    if not shown:
        return _prompts(located), {}
    given = {_prompt(where, row).id: _demonstration(where, row) for where, row in located}
    return _prompts(located), given


def _further(config: Config, count: int) -> list[sources.Located]:
    """Returns `count` rows that no round asks.

    Raises:
      ValueError: where there are not as many.
    """
    if "{round}" in prepared.source_of(config, "prompts"):
        return _located(config, "prm", count)
    asked = {prompt.question for prompt in for_round(config, 1)}  # all rounds have the same
    left = [
        (where, row)
        for where, row in _located(config, "", 0)
        if _prompt(where, row).question not in asked
    ]
    if len(left) < count:
        raise ValueError(
            f"config.prm.prompts: {count}, but the rounds leave {len(left)} of the prompts of"
            f" {config.data.prompts}; set config.data.round_prompts lower, or give each round a"
            " file of its own with {round} in config.data.prompts (here it becomes prm)"
        )
    return [sources.Located(*row) for row in left[:count]]


def _demonstration(where: str, row: Any) -> str:
    text = jsonl.text_of(where, row, "response").rstrip()
    if final_answer(text) is None or not text.endswith(OUTPUT_END):
        raise ValueError(f"{where}: response does not end in a block {OUTPUT} ... {OUTPUT_END}")
    return text


def of_source(config: Config, source: str) -> list[Prompt]:
    """Returns all prompts of a file or a data set of the hub; raises as `for_round`.

    A row's grader is in the prompt's `meta`, and its reference is the ground truth.
    """
    return _prompts(list(sources.read(source, config.data.split)), _graded)


def _from_file(config: Config, part: str, count: int) -> list[Prompt]:
    return _prompts(_located(config, part, count))


def _located(config: Config, part: str, count: int) -> list[sources.Located]:
    path = prepared.source_of(config, "prompts").replace("{round}", part)
    rows = list(sources.read(path, config.data.split))
    return rows[:count] if count else rows


def _source(config: Config, part: str) -> pathlib.Path:
    return pathlib.Path(prepared.source_of(config, "prompts").replace("{round}", part))


def noise_seed(config: Config, number: int) -> int:
    """Returns the seed of a round's draws: a question that comes back in another round gets others.

    The ids of a world's prompts have the round in them.
    """
    again = 0 if is_world(config.data.prompts) else number - 1
    return config.seed + again * _BETWEEN_ROUNDS


def _prompts(
    located: Sequence[sources.Located], read: Callable[[str, Any], Prompt] | None = None
) -> list[Prompt]:
    """Returns the rows' prompts; what is asked twice in a file is one of them.

    Raises:
      ValueError: for a row that is none, or an id that two different ones share.
    """
    found: dict[str, tuple[str, Prompt]] = {}
    twice = 0
    for where, row in located:
        prompt = (read or _prompt)(where, row)
        before, same = found.setdefault(prompt.id, (where, prompt))
        if same != prompt:
            raise ValueError(f"{where}: id is {prompt.id!r}, which {before} has with other content")
        twice += before != where
    judged = [row for _, row in located if not (read and row.get("grader"))]
    untyped = sum(isinstance(row, Mapping) and row.get("type") is None for row in judged)
    if untyped:
        log.warning(
            "%s: %d of %d rows have no type; by their source %d of all are safety prompts, the"
            " others helpfulness",
            located[0].where.rpartition(":")[0],
            untyped,
            len(located),
            sum(prompt.type == "safety" for _, prompt in found.values()),
        )
    if twice:
        log.warning(
            "%s: %d of %d rows ask what another row asks, one tree serves both",
            located[0].where.rpartition(":")[0],
            twice,
            len(located),
        )
    return [prompt for _, prompt in found.values()]


def for_sft(config: Config) -> list[SftRow]:
    """Returns the teacher rows of stage 1; raises as `for_round`."""
    count, data = config.data.sft_rows, config.data
    if world := worlds.of(data.sft):
        return world.sft_rows(config.seed, count) + _judging(config)
    source = prepared.source_of(config, "sft")
    loaded = formats.sft_rows(source, name=data.format, split=data.split)
    return _used(source, loaded, count)


def _judging(config: Config) -> list[SftRow]:
    """Returns the rows that teach a world's model to judge, where it judges itself."""
    if not (world := worlds.of(config.judge.templates)):
        return []
    fills = {
        side: judges.rubric(config, side).fill for side in SIDES if config.judge[side] == "self"
    }
    return world.judging_rows(config.seed, config.data.sft_rows, fills)


def for_preferences(config: Config) -> list[Preference]:
    """Returns the rows that the baselines sft, dpo and sacpo learn from; raises as `for_round`."""
    count, data = config.data.preference_rows, config.data
    if world := worlds.of(data.preferences):
        return world.preferences(config.seed, count)
    source = prepared.source_of(config, "preferences")
    loaded = formats.preference_rows(source, name=data.preferences_format, split=data.split)
    rows = _used(source, loaded, count)
    if len({bool(row.type) for row in rows}) > 1:
        raise ValueError(f"{source}: some rows have a type, some not; expected all or none")
    return rows


def _used(source: str, loaded: formats.Loaded[formats.Kept], count: int) -> list[formats.Kept]:
    """Returns the first `count` rows, all where it is 0, and says what was left out."""
    total = len(loaded.rows) + sum(map(len, loaded.dropped.values()))
    for reason, ids in loaded.dropped.items():
        log.warning(
            "%s: %d of %d rows left out, %s: %s",
            source,
            len(ids),
            total,
            reason,
            ", ".join(ids[:10]) + (" ..." if len(ids) > 10 else ""),
        )
    if not loaded.rows:
        raise ValueError(f"{source}: none of {total} rows is left: {sorted(loaded.dropped)}")
    return loaded.rows[:count] if count else loaded.rows


def _prompt(where: str, row: Any) -> Prompt:
    """Returns a row's prompt, by its own id or one of what it asks: rows may move in their file."""
    before, question = _asked(where, row)
    kind, truth, own = _type(where, row), row.get("ground_truth"), formats.id_of(where, row)
    truth = None if truth is None else str(truth)
    began = jsonl.text_of(where, row, "prefill") if row.get("prefill") not in (None, "") else ""
    more = [began] if began else []
    asked = json.dumps([question, kind, truth, *more, *before])
    return Prompt(
        id=own or f"p{hashes.of_text(asked)[:_ID_DIGITS]}",
        question=question,
        type=kind,
        ground_truth=truth,
        before=before,
        prefill=began,
    )


def _asked(where: str, row: Any) -> tuple[tuple[Turn, ...], str]:
    """Returns the earlier turns of a row and its question, of a text or a list of messages."""
    fields = jsonl.object_of(where, row)
    if fields.get("messages") is not None and (also := {"question", "prompt"} & fields.keys()):
        raise ValueError(f"{where}: found messages and {sorted(also)}, expected one of them")
    for key in ("messages", "prompt"):
        if isinstance(fields.get(key), list):
            return formats.asked_in(where, fields, key)
    return (), jsonl.text_of(where, row, "question", "prompt", "messages")


def _graded(where: str, row: Any) -> Prompt:
    """Returns a row's prompt with the grader that it names, if it names one."""
    prompt, (grader, reference) = _prompt(where, row), named_graders.of_row(where, row)
    if not grader:
        return prompt
    asked = json.dumps([prompt.question, prompt.type, reference, grader])
    name = formats.id_of(where, row) or f"p{hashes.of_text(asked)[:_ID_DIGITS]}"
    meta = {own_prompts.GRADER: grader}
    return dataclasses.replace(prompt, id=name, ground_truth=reference, meta=meta)


def _type(where: str, row: Mapping[str, Any]) -> str:
    """Returns a prompt's type; of a row that does not say, what its source says.

    Source: the loaders of STAIR-SFT and STAIR-Prompts take PKU-SafeRLHF as safety and all else as
    helpfulness.
    """
    kind = row.get("type")
    if kind is None:
        return "safety" if _SAFETY_SOURCE in str(row.get("source", "")).lower() else "helpfulness"
    if kind not in formats.TYPES:
        raise ValueError(f"{where}: type is {kind!r}, expected one of {list(formats.TYPES)}")
    return kind
