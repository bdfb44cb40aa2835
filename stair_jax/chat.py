"""Talk to a model of a run: `stair-jax chat WORKDIR [--model=NAME] [--search=WAY]`."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from stair_jax import startup, text
from stair_jax.config import Config, restore
from stair_jax.config.stages import PRM
from stair_jax.config.strategies import GREEDY, Strategy, parse
from stair_jax.log import bars
from stair_jax.log.metrics import Metrics
from stair_jax.records import Prompt
from stair_jax.run import known_models, worlds
from stair_jax.run.answerer import Answerer, Reply
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.world import World

_SEARCH = (
    "how an answer is found: greedy (default), or as config.evaluate.search: best_of_8, vote_of_8,"
    " beam_2x4, mcts_32, ..., under the run's reward model"
)
_ANEW = "/new"
_SLOTS = 16  # of a search at most: one question fills no more


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads questions, a line each, until the end of the input; prints the whole responses.

    Args:
      arguments: of the command line, without the program's name; None for this process's own.
    """
    parser = argparse.ArgumentParser(prog="stair-jax chat", description="Talk to a model of a run.")
    parser.add_argument("workdir", type=pathlib.Path, help="of the run")
    parser.add_argument("--model", default="", help='"sft", "dpo-2", ...; the last one by default')
    parser.add_argument("--search", default="greedy", metavar="WAY", help=_SEARCH)
    parser.add_argument(
        "--temperature", type=float, help="of what is drawn; 0 without --search, else the run's"
    )
    parser.add_argument("--max_tokens", type=int, help="of a response; the run's by default")
    parser.add_argument("--system", default="", help="a system turn before all questions")
    parser.add_argument(
        "--conversation",
        action="store_true",
        help=f"each question goes on from those before it; a line {_ANEW} starts anew",
    )
    options = parser.parse_args(arguments)
    if not sys.stderr.isatty():
        bars.quiet_libraries()
    try:
        _talk(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _talk(options: argparse.Namespace) -> None:
    strategy = _strategy(options)
    startup.claim_memory()
    config = config_of(options.workdir)
    startup.keep_programs(config.compile_cache)
    slots = 1 if strategy == GREEDY else min(strategy.width * strategy.each, _SLOTS)
    config.engine.update(slots=slots, prefill_rows=1, pool_bytes=0)
    config.mesh.update(shape=(1, 1, 1), replicas=0)  # whatever machine the run was made for
    if options.temperature is not None:
        config.evaluate.temperature = options.temperature
    if options.max_tokens is not None:
        config.evaluate.max_tokens = options.max_tokens
    lineage = Lineage(options.workdir / "lineage.json")
    run = Run(config, options.workdir, lineage, Metrics(options.workdir))
    if strategy.of.reads and not lineage.finished(PRM.artefact()):
        raise ValueError(
            f"--search={options.search}: asks a reward model, and there is none in"
            f" {options.workdir}; run stage prm first"
        )
    model = known_models.named_or_last(run, options.model)
    answerer = Answerer(run, model, [strategy], compile_first=False)
    print(f"{model.name} of {options.workdir}; a question a line, end with Ctrl-D", file=sys.stderr)
    if not config.model.checkpoint:
        _introduce(worlds.of_model(config))
    system: tuple[text.Turn, ...] = (("system", options.system),) if options.system else ()
    before = system
    for number, question in enumerate(map(str.strip, sys.stdin)):
        if not question:
            continue
        if options.conversation and question == _ANEW:
            before = system
            continue
        id = f"chat-{number}"
        prompt = Prompt(id=id, question=question, type="helpfulness", before=before)
        answer = _answered(answerer, strategy, prompt, config.engine.max_context)
        if options.conversation and answer:
            before = (*before, ("user", question), ("assistant", answer))


def _answered(answerer: Answerer, strategy: Strategy, prompt: Prompt, room: int) -> str | None:
    """Prints the response to a prompt, or why there is none; returns the answer in it."""
    codec, replies = answerer.policy.codec, list[str]()
    if unknown := _unknown(codec, prompt.question):
        print(f"(words that it does not know: {', '.join(unknown)})", file=sys.stderr)
    if (tokens := len(text.opening_ids(codec, prompt))) >= room:
        all_of = "the conversation" if prompt.before else "that"
        print(
            f"{all_of} is {tokens} tokens, of {room} that question and response have"
            " (config.engine.max_context); ask again",
            file=sys.stderr,
        )
        return None

    def said(asked: Prompt, reply: Reply) -> None:
        replies.append(reply.text)
        _print(asked, reply)

    for reason in answerer.ask(strategy, [prompt], said).values():
        print(f"no answer: {reason}; ask again", file=sys.stderr)
    return text.final_answer(replies[0], answerer.model.direct) if replies else None


def _strategy(options: argparse.Namespace) -> Strategy:
    """Returns how answers are found; a temperature alone asks for one sample.

    Raises:
      ValueError: for a setting that cannot work, by its flag.
    """
    try:
        strategy = parse(options.search)
    except ValueError as error:
        raise ValueError(f"--search: {error}") from None
    if strategy.of.truth:
        raise ValueError(f"--search: {options.search!r} needs the truth, which nobody knows here")
    if options.temperature is not None and not 0 <= options.temperature < float("inf"):
        raise ValueError(f"--temperature: {options.temperature}, expected 0 or more")
    if options.max_tokens is not None and options.max_tokens < 1:
        raise ValueError(f"--max_tokens: {options.max_tokens}, expected 1 or more")
    return parse("random_of_1") if strategy == GREEDY and options.temperature else strategy


def _print(prompt: Prompt, reply: Reply) -> None:
    del prompt
    print(reply.text.replace(text.STEP_END, f"{text.STEP_END}\n"), flush=True)
    if reply.score is not None:
        print(f"(score {reply.score:.3f}, {reply.tokens} tokens generated)", file=sys.stderr)


def _introduce(world: World) -> None:
    """Says what a world's model can be asked."""
    line = f"The {world.name} understands its own words and forms of question alone, such as:"
    print("\n  ".join([line, *world.examples()]), file=sys.stderr)


def _unknown(codec: text.Codec, question: str) -> list[str]:
    """Returns the words of a question that the vocabulary lacks, where it is one of whole words."""
    tokenizer = codec.tokenizer
    unk = tokenizer.unk_token_id
    words = dict.fromkeys(question.split())
    return [
        word
        for word in words
        if unk is not None and unk in tokenizer.encode(word, add_special_tokens=False)
    ]


def config_of(workdir: pathlib.Path) -> Config:
    """Returns the configuration of a run; ValueError where there is none of this version."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir}: no config.json, expected the workdir of a run")
    try:
        return restore(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: no configuration of this version: {(str(error).splitlines() or [''])[0]}"
        ) from None


if __name__ == "__main__":
    main()
