"""How likely a model finds each of the texts that a benchmark lets it choose from.

Nothing is sampled and no chat template is used: an option is read behind the question as it stands,
both tokenised together, and its log-prob is the sum over its tokens. Source: multiple choice in
EleutherAI/lm-evaluation-harness, whose `loglikelihood` also gives white space at the end of the
question to the option, and puts the beginning of a sequence before an option without question.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stair_jax import text
from stair_jax.engine.likelihood import Likelihood
from stair_jax.engine.request import Prefix
from stair_jax.log import progress
from stair_jax.records import Prompt
from stair_jax.run import models
from stair_jax.run.known_models import Model
from stair_jax.run.workdir import Run, engine_config

_AT_ONCE = 64  # prompts


class Choice(NamedTuple):
    """What a model makes of a prompt's options.

    Attributes:
      logps: of each option, nats.
      tokens: that were read, each option's question included.
      unknown: of a question with an option, those that stand for words the tokenizer does not know;
        the most of any option.
    """

    logps: tuple[float, ...]
    tokens: int
    unknown: int = 0

    @property
    def likeliest(self) -> int:
        """The number of the option with the highest log-prob; of equal ones the first."""
        return self.logps.index(max(self.logps))


def read(
    run: Run,
    model: Model,
    asked: Sequence[tuple[Prompt, Sequence[str]]],
    take: Callable[[Prompt, Choice], None],
) -> dict[str, str]:
    """Reads the options of prompts, and hands each choice on as it comes.

    Args:
      run: the run.
      model: whose log-probs are taken. It is loaded for this, and given up again.
      asked: prompts with their options.
      take: takes each prompt with its choice.

    Returns:
      Why prompts were passed over, by prompt id.
    """
    policy = models.load(run, model, for_engine=True)
    likelihood = Likelihood(
        policy.spec,
        policy.params,
        config=engine_config(run.config),
        mesh=models.engine_places(run)[0],
        give_away=True,
    )
    passed_over: dict[str, str] = {}
    unknown: dict[str, int] = {}
    room = likelihood.config.max_context
    with progress.line(f"evaluate {model.name} options", len(asked), "prompts") as show:
        for at in range(0, len(asked), _AT_ONCE):
            some, fitting = asked[at : at + _AT_ONCE], []
            for prompt, options in some:
                pairs = [pair_ids(policy.codec, prompt.question, option) for option in options]
                if (most := max(len(a) + len(b) for a, b in pairs)) < room:
                    fitting.append((prompt, pairs))
                    unknown[prompt.id] = max(
                        text.unknown_of(policy.codec, [*a, *b]) for a, b in pairs
                    )
                else:
                    passed_over[prompt.id] = (
                        f"{most} tokens with its longest option, expected fewer than {room}"
                        " (engine.max_context)"
                    )
            for prompt, choice in _choices(likelihood, fitting):
                take(prompt, choice._replace(unknown=unknown[prompt.id]))
            show(show.done + len(some))
    return passed_over


def pair_ids(codec: text.Codec, question: str, option: str) -> tuple[list[int], list[int]]:
    """Returns the ids of a question, and those of an option behind it."""
    stripped = question.rstrip()
    option = question[len(stripped) :] + option
    whole, alone = (
        codec.encode(text.escape(said, codec.specials)) for said in (stripped + option, stripped)
    )
    start = min(len(alone), len(whole) - 1)  # an option has a token, if only one that it shares
    if not start:  # nothing stands before it
        begin = codec.tokenizer.bos_token_id
        return [codec.eos_id if begin is None else begin], whole
    return whole[:start], whole[start:]


def _choices(
    likelihood: Likelihood, asked: Sequence[tuple[Prompt, list[tuple[list[int], list[int]]]]]
) -> list[tuple[Prompt, Choice]]:
    """Returns the choice of each prompt, all read in one call; equal questions are read once."""
    roots: dict[tuple[int, ...], Prefix] = {}
    for _, pairs in asked:
        for ids, _ in pairs:
            if tuple(ids) not in roots:
                roots[tuple(ids)] = likelihood.root(ids)
    found = likelihood.extend(
        [(roots[tuple(ids)], option) for _, pairs in asked for ids, option in pairs]
    )
    for held in (*roots.values(), *(held for held, _ in found)):
        likelihood.release(held)
    sums = iter([float(logps.sum(dtype="float64")) for _, logps in found])
    return [
        (
            prompt,
            Choice(
                tuple(next(sums) for _ in pairs),
                sum(len(ids) + len(option) for ids, option in pairs),
            ),
        )
        for prompt, pairs in asked
    ]
