"""What a language model is asked as the judge of a published benchmark, and how its reply is read.

The authors' prompts are sentences of others. A user who has them as files names their folder, and
their hashes say that they are the very ones. Else the judge is asked in our own words, and the
results say so, for the figures cannot be compared.

Our words put each text between two lines with a mark that is in none of the texts, and say that
what is between them is data. The authors' prompts do not: a response may imitate their delimiters.

| protocol     | figures                                                                        |
|--------------|--------------------------------------------------------------------------------|
| strongreject | goodness (1 - score_official), score_official, score_suite                     |
| xstest       | full_compliance, full_refusal, partial_refusal, any_refusal (full or partial)  |
| harmbench    | asr, without behaviours of copyright, which the authors do not judge by a model |
| jbb          | asr, refusal: two questions, of two judges of the authors'                     |
| simpleqa     | correct, incorrect, not_attempted, accuracy_given_attempted, f1                |

AlpacaEval is not among them: it needs log-probs of the judge's first token, which the client of
endpoints does not take. HarmBench's prompt was made for a classifier that completes raw text;
behind a chat endpoint that text is the user's turn.

Sources of prompts and protocols: Souly et al. 2024 (arXiv 2402.10260), dsbowen/strong_reject (MIT);
Röttger et al. 2023 (arXiv 2308.01263), paul-rottger/exaggerated-safety (CC-BY-4.0), its system turn
is OpenAI's usual one; Mazeika et al. 2024 (arXiv 2402.04249), centerforaisafety/HarmBench (MIT);
Chao et al. 2024 (arXiv 2404.01318), JailbreakBench/jailbreakbench (MIT), the hash of its refusal
judge is of a copy that was put together again in part; Wei et al. 2024 (arXiv 2411.04368),
openai/simple-evals (MIT).
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stair_jax.evals import judge_figures, prompt_files
from stair_jax.evals.judge_figures import Reading, Summary
from stair_jax.judges.rubrics import asked_of
from stair_jax.records import Prompt

_OWN = pathlib.Path(__file__).parent / "graders" / "templates"
_SHORT = 16  # tokens of a reply that is a word or a class
_REASONED = 1024  # of one with reasons
_MARK_DIGITS = 16
_TEXTS = ("request", "response", "context", "gold")


class Wording(NamedTuple):
    """The words that a judge is asked in.

    Attributes:
      system: turn; "" where there is none.
      template: with the placeholders of `places`.
      places: what each placeholder stands for: one of request, response, context, gold, boundary.
      label: "official prompt" or "own words".
      sources: names of the files, each with the first digits of its hash.
    """

    system: str
    template: str
    places: Mapping[str, str]
    label: str
    sources: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """One question to a judge about one answer.

    Attributes:
      name: of the prompt, and of our template.
      official: name of the authors' file, without ".txt".
      sha256: of that file.
      places: what the placeholders of that file stand for.
      read: what a reply says; None where it does not say what it is asked for.
      summaries: of the figures, by name, over the readings of all answers that have one.
      max_tokens: of a reply.
      system: the authors' system turn, where it is no file.
      system_file: name of the file of their system turn, "" where there is none.
      system_sha256: of that file.
      asks: whether the authors ask it about answers to a prompt.
    """

    name: str
    official: str
    sha256: str
    places: Mapping[str, str]
    read: Callable[[str], Reading | None]
    summaries: Mapping[str, Summary]
    max_tokens: int = _SHORT
    system: str = ""
    system_file: str = ""
    system_sha256: str = ""
    asks: Callable[[Prompt], bool] = lambda prompt: True

    def wording(self, folder: str = "") -> Wording:
        """Returns the authors' words from a folder of their files; ours where it is empty.

        Raises:
          ValueError: where a file cannot be read or is not the authors', naming it.
        """
        if not folder:
            template = prompt_files.own(_OWN, self.name)
            places = {name: name for name in (*_TEXTS, "boundary")}
            digest = hashlib.sha256(template.encode()).hexdigest()
            return Wording("", template, places, "own words", (_source(self.name, digest),))
        place = pathlib.Path(folder)
        template = prompt_files.official(place, self.official, self.sha256)
        system, sources = self.system, [_source(self.official, self.sha256)]
        if self.system_file:
            system = prompt_files.official(place, self.system_file, self.system_sha256)
            sources.append(_source(self.system_file, self.system_sha256))
        return Wording(system, template, self.places, "official prompt", tuple(sources))


def _source(name: str, digest: str) -> str:
    return f"{name} {digest[:8]}"


def question(wording: Wording, prompt: Prompt, answer: str) -> str:
    """Returns the user turn that asks a judge about an answer.

    Args:
      wording: of a `JudgePrompt`.
      prompt: that was answered. The judge sees `meta["goal"]` where there is one, which is the
        request before it was disguised, and the earlier turns where there are any.
      answer: the final answer alone.
    """
    texts = {
        "request": prompt.meta.get("goal") or asked_of(prompt),
        "response": answer,
        "context": prompt.meta.get("context", ""),
        "gold": prompt.ground_truth or "",
    }
    values = {**texts, "boundary": boundary_of(list(texts.values()))}
    return prompt_files.fill(
        wording.template, {name: values[place] for name, place in wording.places.items()}
    )


def boundary_of(texts: list[str]) -> str:
    """Returns a mark that is in none of the texts, and the same for the same texts."""
    number = 0
    while True:
        mark = hashlib.sha256(repr((number, texts)).encode(errors="replace")).hexdigest()
        mark = f"={mark[:_MARK_DIGITS]}="
        if not any(mark in text for text in texts):
            return mark
        number += 1


def _is_copyright(prompt: Prompt) -> bool:
    return prompt.meta.get("FunctionalCategory") == "copyright"


_ASR = {"asr": judge_figures.share_of("asr")}
_JBB_PLACES = {"goal": "request", "response": "response"}
_BEHAVIOR = {"behavior": "request", "generation": "response"}

_STRONGREJECT = JudgePrompt(
    name="strongreject",
    official="strongreject_rubric",
    sha256="dde7e2e8fe821670c8a206d65caad8c1611dbc73277708ebbdfae51507f3c6de",
    system_file="strongreject_rubric_system",
    system_sha256="7919b6d41af2dc9f32797d96eaa952934dca0713c7f3f63ddc6c299db9857248",
    places={"forbidden_prompt": "request", "response": "response"},
    max_tokens=_REASONED,
    read=judge_figures.strongreject,
    summaries=judge_figures.STRONGREJECT,
)
_XSTEST = JudgePrompt(
    name="xstest",
    official="xstest_gpt4_classifier",
    sha256="23d302d47aaf4be46ca4661985fb723d0193e61d120d207050956895314ec6f9",
    system="You are a helpful assistant.",
    places={"QUESTION": "request", "RESPONSE": "response"},
    read=judge_figures.xstest,
    summaries=judge_figures.XSTEST,
)
_HARMBENCH = JudgePrompt(
    name="harmbench",
    official="harmbench_cls_standard",
    sha256="788f4f6aa1491c433c4da76c9140cfc30966cea3ff3875c4d0fcb336d92f60e0",
    places=_BEHAVIOR,
    read=judge_figures.harmbench,
    summaries=_ASR,
    asks=lambda prompt: "context" not in prompt.meta and not _is_copyright(prompt),
)
_HARMBENCH_CONTEXTUAL = JudgePrompt(
    name="harmbench_contextual",
    official="harmbench_cls_contextual",
    sha256="5d6bb9e3cf4d1e5f3f7620093113222ee115af75b0b2913f00e4c7225ec9f219",
    places={**_BEHAVIOR, "context": "context"},
    read=judge_figures.harmbench,
    summaries=_ASR,
    asks=lambda prompt: "context" in prompt.meta and not _is_copyright(prompt),
)
_JBB_JAILBREAK = JudgePrompt(
    name="jbb_jailbreak",
    official="jbb_jailbreak_judge",
    sha256="2bdc0b4d11a5b7e8c06528c44f2d04e01084c156e0e040380a5e2ca1a1055aa1",
    places=_JBB_PLACES,
    read=judge_figures.jbb_jailbreak,
    summaries=_ASR,
)
_JBB_REFUSAL = JudgePrompt(
    name="jbb_refusal",
    official="jbb_refusal_judge",
    sha256="dd38686241c80a12f943fbdee858c438624237fe89c6f230276ec18405e9712d",
    places=_JBB_PLACES,
    read=judge_figures.jbb_refusal,
    summaries={"refusal": judge_figures.share_of("refusal")},
)
_SIMPLEQA = JudgePrompt(
    name="simpleqa",
    official="simpleqa_grader",
    sha256="063c04ea798f91c4706c050b66a721afc77a458b12d8f0d72286d4b0eee8a3ee",
    places={"question": "request", "target": "gold", "predicted_answer": "response"},
    read=judge_figures.simpleqa,
    summaries=judge_figures.SIMPLEQA,
)

PROTOCOLS: Mapping[str, tuple[JudgePrompt, ...]] = {  # by `Benchmark.judged`
    "strongreject": (_STRONGREJECT,),
    "xstest": (_XSTEST,),
    "harmbench": (_HARMBENCH, _HARMBENCH_CONTEXTUAL),
    "jbb": (_JBB_JAILBREAK, _JBB_REFUSAL),
    "simpleqa": (_SIMPLEQA,),
}
