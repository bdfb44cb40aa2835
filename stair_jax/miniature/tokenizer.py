"""The tokenizer: one token per word of the world, STAIR's tags and the chat template's marks."""

import string

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stair_jax.miniature import harm, judging, tasks, teacher, words
from stair_jax.text import TAGS

PAD, UNK, BOS, EOS = "<|pad|>", "<|unk|>", "<|begin_of_text|>", "<|eot_id|>"
HEADER, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
SPECIALS = (PAD, UNK, BOS, EOS, HEADER, HEADER_END, *TAGS)
ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    f"{HEADER}{{{{ message['role'] }}}}{HEADER_END}\n\n{{{{ message['content'] }}}}{EOS}"
    "{% endfor %}{% if add_generation_prompt %}"
    f"{HEADER}assistant{HEADER_END}\n\n{{% endif %}}"
)


def vocabulary(*, judging_too: bool = False) -> list[str]:
    """Returns every token, special tokens first, in an order that never changes with a seed.

    The words of verdicts come last, for a model that is to judge.
    """
    templates = (
        *harm.FORMS.values(),
        *harm.FICTION_FORMS.values(),
        *harm.FRAMINGS.values(),
        *(form for forms in tasks.FORMS.values() for form in forms),
        *(text for pair in tasks.ABOUT.values() for text in pair),
        *tasks.WORK,
        *tasks.POSITIONS,
        *tasks.SIDES,
        *teacher.TEMPLATES,
    )
    fixed = [word for template in templates for word in template.split()]
    world = (word for word in fixed if not _is_field(word))
    verdicts = judging.WORDS if judging_too else ()
    return list(dict.fromkeys((*SPECIALS, *ROLES, *words.LEXICON, *world, *verdicts)))


def _is_field(word: str) -> bool:
    """Returns whether a word of a template is a field to be filled in, like "{verb}"."""
    return any(name for _, name, _, _ in string.Formatter().parse(word))


def build(*, judging_too: bool = False) -> PreTrainedTokenizerFast:
    """Returns the tokenizer, as transformers saves and loads it; the argument as `vocabulary`'s."""
    ids = {word: i for i, word in enumerate(vocabulary(judging_too=judging_too))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=[HEADER, HEADER_END, *TAGS],
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
        padding_side="right",
    )
