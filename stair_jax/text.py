"""Tags, chat templates, answers: between text and token ids. Floor 0: imports no JAX."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

STEP, STEP_END = "<|Reasoning_step|>", "<|/Reasoning_step|>"
OUTPUT, OUTPUT_END = "<|Output|>", "<|/Output|>"
TAGS = (STEP, STEP_END, OUTPUT, OUTPUT_END)
Turn = tuple[str, str]  # role ("system", "user", "assistant"), content

# The method's form of each family's template: no system block unless one is asked for, and no
# dates (thu-ml/STAIR utils; the checkpoints' own templates add what training never saw).
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"llama3": _LLAMA3, "chatml": _CHATML}
TURN_ENDS = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>"}
_SYSTEM_TURN = re.compile(
    r"(<\|im_start\|>system\n|<\|start_header_id\|>system<\|end_header_id\|>\n\n)"
    r"(?P<text>.*?)(<\|im_end\|>|<\|eot_id\|>)",
    re.DOTALL,
)
# Tokens that end a response in the official code, where a vocabulary has them.
_END_TOKENS = ("<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE_OF_FAMILY = {"llama": "llama3", "qwen2": "chatml", "qwen3": "chatml"}


@runtime_checkable
class PromptCodec(Protocol):
    """The part of a `Codec` that prompts and answers need."""

    def prompt_ids(self, question: str, before: Sequence[Turn] = ()) -> list[int]:
        """Returns the ids of a whole prompt, up to where the response begins.

        Special tokens in `question` are broken up. `before` has the earlier turns.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, tags included, without a part of a character at the end."""
        ...


@runtime_checkable
class ResponseCodec(PromptCodec, Protocol):
    """The part of a `Codec` that beginnings of responses need, too."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of what a model said, special tokens and all: inverts `decode`."""
        ...


@runtime_checkable
class Opening(Protocol):
    """What a response goes on from: a `Prompt`, or a row that was made of one."""

    @property
    def question(self) -> str:
        """The user's last turn."""
        ...

    @property
    def before(self) -> tuple[Turn, ...]:
        """The turns before it."""
        ...

    @property
    def prefill(self) -> str:
        """How the response begins."""
        ...


def opening_ids(codec: PromptCodec, prompt: Opening) -> list[int]:
    """Returns the ids that a model goes on from: a whole prompt, and how its response begins."""
    ids = codec.prompt_ids(prompt.question, prompt.before)
    if not prompt.prefill:
        return ids
    assert isinstance(codec, ResponseCodec), f"{type(codec).__name__} encodes no responses"
    return ids + codec.encode(prompt.prefill)


def unknown_of(codec: PromptCodec, ids: Sequence[int]) -> int:
    """Returns how many ids stand for words that a vocabulary does not have."""
    unknown = getattr(codec, "unknown_id", None)
    return 0 if unknown is None else ids.count(unknown)


class Codec:
    """Prompts and responses as token ids, for one tokenizer and one chat template.

    Args:
      tokenizer: a Hugging Face tokenizer whose vocabulary holds the four tags as single tokens.
      template: a name of `TEMPLATES`.
      system: text of a system turn put before every question; empty for none.
      more_ends: ids that end a response of this checkpoint, beside those that are known by name.
        The tags are none of them, whatever a checkpoint says: they end steps and answers.

    Raises:
      ValueError: for an unknown template, a tag that is not one token, a template whose tokens
        the vocabulary lacks, or padding that equals the end of a turn.
    """

    def __init__(
        self, tokenizer: Any, template: str, system: str = "", more_ends: Collection[int] = ()
    ):
        if template not in TEMPLATES:
            raise ValueError(f"model.template: {template!r} is not one of {sorted(TEMPLATES)}")
        self.tokenizer, self.template, self.system = tokenizer, template, system
        vocabulary = tokenizer.get_vocab()
        for tag in (*TAGS, TURN_ENDS[template]):
            if tag not in vocabulary:
                raise ValueError(f"tokenizer: {tag!r} is no token, template {template!r} needs it")
        self.size = max(vocabulary.values()) + 1  # ids below it can be drawn
        self.turn_end = TURN_ENDS[template]
        self.eos_id: int = vocabulary[self.turn_end]
        ends = {vocabulary[t] for t in _END_TOKENS if t in vocabulary} | {self.eos_id}
        if tokenizer.eos_token_id is not None:
            ends.add(tokenizer.eos_token_id)
        ends |= set(more_ends) - {vocabulary[tag] for tag in TAGS}
        self.end_stop = frozenset(ends | {vocabulary[OUTPUT_END]})
        self.step_stop = self.end_stop | {vocabulary[STEP_END]}
        self.stops = {"step": self.step_stop, "end": self.end_stop}
        self.end_ids = frozenset(ends)  # what generation_config.json lists
        # Some vocabularies that can spell everything name an end as their unknown token.
        unknown = tokenizer.unk_token_id
        self.unknown_id: int | None = None if unknown in ends else unknown
        # Padding is never read (masks come from lengths), so any id that ends nothing serves.
        pad = tokenizer.pad_token_id
        ordinary = next(i for i in range(len(vocabulary)) if i not in self.end_stop)
        self.pad_id: int = pad if pad is not None and pad not in ends else ordinary
        self.specials = tuple(
            sorted(set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab()))
        )
        # What an answer must not hold: words that were only added, as <think> in Qwen3, it may.
        added = tokenizer.added_tokens_decoder.values()
        controls = {str(token) for token in added if token.special}
        self._controls = sorted((controls | set(tokenizer.all_special_tokens)) - {*TAGS})
        self._written_ends = tuple(t for t in self._controls if vocabulary.get(t) in ends)
        self.chat_template = _with_system(TEMPLATES[template], escape(system, self.specials))

    @property
    def digest(self) -> str:
        """A hash of what decides which ids a text becomes: vocabulary, template, system turn."""
        facts = [sorted(self.tokenizer.get_vocab().items()), TEMPLATES[self.template], self.system]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()

    def prompt_ids(self, question: str, before: Sequence[Turn] = ()) -> list[int]:
        """Returns the ids of the whole prompt, up to where the response begins.

        Args:
          question: of the user.
          before: earlier turns; a system turn among them takes the place of the codec's own. An
            earlier answer keeps its tags, all other special tokens are broken up.
        """
        messages = [
            {"role": role, "content": self._plain(role, x)}
            for role, x in (*before, ("user", question))
        ]
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )

    def _plain(self, role: str, content: str) -> str:
        if role == "assistant":
            return escape(self._said(content), self._controls)
        return escape(content, self.specials)

    def response_ids(self, response: str) -> list[int]:
        """Returns the ids of a teacher's response, as far as it says something.

        Its tags become tags. Ends of sequence and white space behind it are left out, and other
        special tokens within it are broken up: it is `closed` by the one end that is trained.
        """
        return self.encode(self._plain("assistant", response))

    def holds_controls(self, response: str) -> bool:
        """Returns whether `response_ids` breaks something up."""
        return self._plain("assistant", response) != self._said(response)

    def _said(self, response: str) -> str:
        said = response.rstrip()
        while said.endswith(self._written_ends):
            end = next(end for end in self._written_ends if said.endswith(end))
            said = said.removesuffix(end).rstrip()
        return said

    def encode(self, text: str) -> list[int]:
        """Returns the ids of what a model said, special tokens and all: inverts `decode`."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, tags included.

        Tokens may be parts of a character: one at the end that lacks some is left out.
        """
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text.rstrip("\ufffd")


def _with_system(template: str, system: str) -> str:
    """Returns a template that puts a system turn before conversations that have none."""
    if not system:
        return template
    # Jinja reads the escapes of Python, in either kind of quotes.
    text = system.encode("unicode_escape").decode().replace("'", "\\'")
    return (
        "{% if messages[0]['role'] != 'system' %}"
        f"{{% set messages = [{{'role': 'system', 'content': '{text}'}}] + messages %}}"
        "{% endif %}" + template
    )


def own_system(tokenizer: Any) -> str:
    """Returns the system turn that a tokenizer's own chat template begins with, unasked."""
    asked = [{"role": "user", "content": "?"}]
    try:
        shown = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception:  # there is no template, or one that wants more: it may raise anything
        return ""
    found = _SYSTEM_TURN.search(shown)
    return found["text"].strip() if found else ""


def template_for(tokenizer: Any, family: str) -> str:
    """Returns the template of a model family, or the one whose turns the vocabulary knows.

    Fine-tunes bring their own turns along: a Llama that speaks ChatML gets ChatML.
    """
    usual = TEMPLATE_OF_FAMILY[family]
    vocabulary = tokenizer.get_vocab()
    known = [name for name, end in TURN_ENDS.items() if end in vocabulary]
    return usual if usual in known or not known else known[0]


def escape(question: str, specials: Iterable[str]) -> str:
    """Returns a user's text with every special token broken up, so that it stays plain text.

    A tag typed by a user must not become the token that ends a step: `<|Output|>` turns into
    `< |Output|>`.
    """
    for token in specials:
        if len(token) > 1 and token in question:
            question = question.replace(token, f"{token[0]} {token[1:]}")
    return question


def final_answer(response: str, direct: bool = False) -> str | None:
    """Returns the text of the closed Output block, or None where there is none.

    A `direct` response, of a model that does not reason, is the answer as a whole.

    The block may carry a "Final Answer:" line, which is not part of the answer. Source:
    thu-ml/STAIR src/final_orm.py takes the same block but cannot tell a missing one apart.
    """
    if direct:
        return response.strip()
    blocks = re.findall(re.escape(OUTPUT) + r"(.*?)" + re.escape(OUTPUT_END), response, re.DOTALL)
    if not blocks:
        return None
    return re.sub(r"^\s*final answer\s*:", "", blocks[-1], flags=re.IGNORECASE).strip()


def tags_close(response: str) -> bool:
    """Returns whether each tag that a response opens is closed before the next one is opened."""
    closes = {STEP: STEP_END, OUTPUT: OUTPUT_END}
    due = None
    for tag in re.findall("|".join(map(re.escape, TAGS)), response):
        if tag != due and (due is not None or tag not in closes):
            return False
        due = closes.get(tag)
    return due is None
