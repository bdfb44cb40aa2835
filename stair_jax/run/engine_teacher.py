"""The run's checkpoint as a teacher: it answers in the engine, and each reply is kept on disk."""

import dataclasses
import logging
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from stair_jax import jsonl, text
from stair_jax.config.schema import RewardConfig
from stair_jax.data.teaching.chats import Question
from stair_jax.data.teaching.instruction import Instruction
from stair_jax.engine.request import EngineLike, Sampling
from stair_jax.hf import metadata
from stair_jax.log import progress
from stair_jax.records import Candidate, Prompt
from stair_jax.remote.client import Reply
from stair_jax.run import known_models, models
from stair_jax.run.rejected import NoJudge
from stair_jax.run.workdir import Run
from stair_jax.search import candidates
from stair_jax.search.reward import Reward

log = logging.getLogger(__name__)

FILE = "replies.jsonl"
_LEAST_ROOM = 64  # tokens of a question and a reply that are worth asking for


class TaggedCodec:
    """A codec for instructions: STAIR's tags in a user turn are what the checkpoint takes them for.

    Elsewhere tags that a user has typed are broken up. Here they are the instruction's own, and
    `Instruction` breaks up the question's. A checkpoint that does not know them reads them as
    plain text, as it would write them.

    Args:
      codec: of the checkpoint.
      tokenizer: of the checkpoint, without tags that it does not know.
    """

    def __init__(self, codec: text.Codec, tokenizer: Any):
        self._codec, self._tokenizer = codec, tokenizer
        self._broken_up = [word for word in codec.specials if word not in text.TAGS]

    @property
    def end_stop(self) -> Collection[int]:
        """Ids that end a response."""
        return self._codec.end_stop

    def prompt_ids(self, question: str, before: Sequence[text.Turn] = ()) -> list[int]:
        """Returns the ids of a whole prompt, up to where the response begins."""
        turns = (*before, ("user", question))
        return self._tokenizer.apply_chat_template(
            [{"role": role, "content": text.escape(x, self._broken_up)} for role, x in turns],
            chat_template=self._codec.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, tags included."""
        return self._codec.decode(ids)


def codec_of(run: Run) -> TaggedCodec:
    """Returns the codec that the run's checkpoint is instructed with."""
    own = metadata.load_spec_and_tokenizer(run.origin.model.checkpoint)[1]
    return TaggedCodec(models.spec_and_codec(run)[1], own)


def check_room(run: Run, instruction: Instruction) -> None:
    """Refuses an instruction that leaves no room for a reply in the engine's context.

    Raises:
      ValueError: with the tokens that it takes and those that there are.
    """
    nothing = Prompt(id="", question="", type="helpfulness")
    taken, room = (
        len(codec_of(run).prompt_ids(instruction.ask(nothing))),
        run.config.engine.max_context,
    )
    if taken + _LEAST_ROOM > room:
        least = taken + run.config.recipe.teacher_max_tokens
        raise ValueError(
            f"config.recipe.instruction: takes {taken} of the {room} tokens of"
            f" config.engine.max_context; raise that to {least} or more"
        )


def sampling_of(run: Run) -> Sampling:
    """Returns how the teacher's tokens are drawn."""
    r = run.config.recipe
    return Sampling(temperature=r.teacher_temperature, top_p=r.teacher_top_p)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Said:
    """A reply on disk."""

    id: str  # of the prompt and the attempt
    text: str


class EngineChat:
    """A `Chat` with the run's base. What is in the file of replies is not decoded again.

    A draw depends on the run's seed, the prompt's id and the attempt alone.

    Args:
      run: the run.
      artefact: that the replies belong to; their file lies in its folder.
      engine: that decodes with the base.
    """

    def __init__(self, run: Run, artefact: str, engine: EngineLike):
        self._run, self._engine, self._artefact = run, engine, artefact
        self._codec, self._path = codec_of(run), pathlib.Path(run.workdir, artefact, FILE)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        jsonl.mend_jsonl(self._path)
        self._have = {row.id: row.text for row in jsonl.read_jsonl(self._path, _Said)}

    def __call__(self, questions: Sequence[Question], /) -> list[Reply]:
        """Returns a reply to each question; None to one that leaves no room for any."""
        left = [_prompt(one) for one in questions if _name(one) not in self._have]
        if left:
            self._ask(left)
        return [self._have.get(_name(one)) for one in questions]

    def _ask(self, left: Sequence[Prompt]) -> None:
        c = self._run.config
        draw = candidates.Draw(
            count=1,
            sampling=sampling_of(self._run),
            max_tokens=c.recipe.teacher_max_tokens,
            key=(c.seed, self._artefact),
            direct=known_models.base(self._run).direct,
        )
        done = 0
        with (
            progress.line(f"{self._artefact}/{FILE}", len(left), "replies") as show,
            jsonl.Journal() as journal,
        ):

            def keep(found: Candidate) -> None:
                nonlocal done
                said = _Said(id=found.prompt, text=found.text)
                journal.add(self._path, said)
                self._have[said.id] = said.text
                done += 1
                show(done, f"{self._engine.counters['delivered']:,} tokens")

            passed = candidates.sample(
                left,
                draw,
                engine=self._engine,
                codec=self._codec,
                judge=NoJudge(),
                reward=Reward(c.search.reward, RewardConfig.of(c.reward)),
                have=(),
                on_candidate=keep,
            ).passed_over
        for name, why in passed.items():
            log.warning("%s: prompt %s has no reply: %s", self._artefact, name, why)


def _name(one: Question) -> str:
    return f"{one.prompt.id}/{one.attempt}"


def _prompt(one: Question) -> Prompt:
    return Prompt(id=_name(one), question=one.text, type=one.prompt.type)
