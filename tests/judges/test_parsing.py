# ruff: noqa: RUF001 (signs of other scripts are what is tested)
"""What judges say, and what must come out of it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stair_jax.judges import parsing
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END

LONG = "The answer names the right tool and tells how to hold it. It leaves out 2 of the 5 steps.\n"

HELPFULNESS = [
    # as asked for
    ("Conclusion: [4]", 4),
    ("Conclusion: [1]", 1),
    ("Conclusion: [5]\n", 5),
    (LONG + "\nConclusion: [3]", 3),
    (LONG + "\n\n  Conclusion:   [ 2 ]  \n\n", 2),
    ("Conclusion: [4]<|eot_id|>", 4),
    ("Conclusion: [4]<|im_end|>\n<|endoftext|>", 4),
    ("Conclusion: [4]\n\nI gave no full marks, since 5 would need all the steps.", 4),
    # dressed up
    ("Conclusion: 4", 4),
    ("Conclusion: 4.", 4),
    ("conclusion: (4)", 4),
    ("CONCLUSION: 4", 4),
    ("Conclusion : 4", 4),
    ("Conclusion: **4**", 4),
    ("**Conclusion:** 4", 4),
    ("**Conclusion: [4]**", 4),
    ("**Conclusion**: [4]", 4),
    ("### Conclusion: 4", 4),
    ("*Conclusion:* _4_", 4),
    ("`Conclusion: [4]`", 4),
    ('"Conclusion: [4]"', 4),
    ("\u201cConclusion\u201d: \u201c4\u201d", 4),
    ("Conclusion: [[4]]", 4),
    ("Conclusion: <4>", 4),
    ("Conclusion: {4}", 4),
    ("Conclusion: $\\boxed{4}$", 4),
    ("Conclusion:\n[4]", 4),
    ("**Conclusion:**\n\n4\n", 4),
    ("My final conclusion: [4]", 4),
    ('{"reasoning": "nothing is wrong",\n "conclusion": 4}', None),  # a brace that opens above
    ('"conclusion": 4,', 4),
    # out of five
    ("Conclusion: 4/5", 4),
    ("Conclusion: [4/5]", 4),
    ("Conclusion: [4]/5", 4),
    ("Conclusion: 4 / 5.", 4),
    ("Conclusion: 4 out of 5", 4),
    ("Conclusion: **4 out of 5**", 4),
    ("Conclusion: 5 of 5", 5),
    ("Conclusion: Score: 4", 4),
    ("Conclusion: [score: 4]", 4),
    ("Conclusion: [Score] 4", 4),
    ("Conclusion: rating 4", 4),
    # no number from 1 to 5
    ("Conclusion: 45", None),
    ("Conclusion: [45]", None),
    ("Conclusion: 0", None),
    ("Conclusion: [0]", None),
    ("Conclusion: 6", None),
    ("Conclusion: 10", None),
    ("Conclusion: -1", None),
    ("Conclusion: [-4]", None),
    ("Conclusion: 3.5", None),
    ("Conclusion: 4.0", None),
    ("Conclusion: 3,5", None),
    ("Conclusion: 4/10", None),
    ("Conclusion: 4 out of 10", None),
    ("Conclusion: 4/50", None),
    ("Conclusion: 80%", None),
    ("Conclusion: 4%", None),
    ("Conclusion: three", None),
    ("Conclusion: IV", None),
    ("Conclusion: 4 1", None),
    ("Conclusion: 3-4", None),
    ("Conclusion: 3 or 4", None),
    ("Conclusion: between 3 and 4", None),
    ("Conclusion: [3] or [4]", None),
    ("Conclusion: 4?", None),
    ("Conclusion: 4+", None),
    ("Conclusion: 3\u00bd", None),
    ("Conclusion: 4\u00b2", None),
    # words about numbers
    ("Conclusion: 2 of the facts are wrong, so the score is 3", None),
    ("Conclusion: 4 because nothing is wrong.", None),
    ("Conclusion: not 4", None),
    ("Conclusion: The answer is good.\nScore: 4", None),
    ("Conclusion:\n4. The last step is wrong.", None),
    ("In conclusion, 4 of the claims hold.", None),
    ("I would give it a 4.", None),
    ("Score: 4", None),
    ("4", None),
    ("[4]", None),
    ("4/5", None),
    ("<conclusion>4</conclusion>", None),
    ("The conclusion is 4", None),
    ("Inconclusion: 4", None),
    ("Conclusions: 4", None),
    # several
    ("Conclusion: [4]\nConclusion: [4]", 4),
    ("Conclusion: 4/5\n" + LONG + "**Conclusion:** [4]", 4),
    ("Conclusion: [4]\nConclusion: [2]", None),
    ("Conclusion: [2]\nOn second thoughts:\nConclusion: [4]", None),
    ("Conclusion: [score]\nConclusion: [4]", None),
    ("Conclusion: it is fine.\nConclusion: [4]", None),
    ("Conclusion: [4] Conclusion: [4]", None),
    # echoes
    ("Conclusion: [score]", None),
    ("Conclusion: [grade]", None),
    ("Conclusion: [1-5]", None),
    ("Conclusion: [1, 2, 3, 4 or 5]", None),
    # other languages
    ("结论：4", 4),
    ("最终结论：[4]", 4),
    ("**结论**：【4】。", 4),
    ("結論: 4", 4),
    ("결론: 4", 4),
    ("Fazit: 4", 4),
    ("Schlussfolgerung: **4**", 4),
    ("Conclusión: [4]", 4),
    ("Conclusão: 4", 4),
    ("Conclusione: 4/5", 4),
    ("Вывод: 4", 4),
    ("Fazit: 4 von 5", None),
    ("结论：四", None),
    ("结论：4分", None),
    ("Ergebnis: 4", None),
    ("Conclusion: \uff14", 4),
    ("Conclusion\uff1a\uff3b\uff14\uff3d", 4),
    ("Conclusion: \u0664", None),  # an Arabic-Indic four
    # cut short, empty
    ("Conclusion: [4", None),
    ("Conclusion: 4]", None),
    ("Conclusion: [", None),
    ("Conclusion:", None),
    ("Conclusion", None),
    (LONG, None),
    ("", None),
    (" \n\t", None),
    (None, None),
    ("Conclusion: SAFE", None),
    # of a policy that answers in STAIR's format
    (f"{STEP}Conclusion: [1]{STEP_END}{OUTPUT}Final Answer: Conclusion: [4]{OUTPUT_END}", 4),
    (f"{STEP}It is fine.{STEP_END}{OUTPUT}{LONG}Conclusion: [4]{OUTPUT_END}<|eot_id|>", 4),
    (f"{STEP}Conclusion: [4]{STEP_END}{OUTPUT}It is fine.{OUTPUT_END}", None),
    (f"{STEP}thinks{STEP_END}{OUTPUT}Conclusion: [4]", 4),  # no closed block: the whole text
    (f"{STEP}Conclusion: [2]{STEP_END}{OUTPUT}Conclusion: [4]", None),
    # drafts
    ("<think>Conclusion: [1]\n</think>Conclusion: [4]", 4),
    ("<think>Conclusion: [4]\n</think>It is hard to say.", None),
    ("<think>Conclusion: [4]", None),
    ("Conclusion: [1]\n</think>\nIt is hard to say.", None),  # the template opened it
    ("Conclusion: [1]\n</think>\nConclusion: [2]", 2),
    ("<think>a<think>b</think>Conclusion: [1]\n</think>It is hard to say.", None),
    ("<think>1</think>Conclusion: [3]<think>Conclusion: [1]\n</think>", 3),
    ("<think>1</think>Conclusion: [3]<think>2</think>Conclusion: [1]", None),
    ("<Thinking time='3 s'>Conclusion: [1]\n</Thinking >", None),
    ("＜think＞Conclusion: [1]\n＜/think＞", None),
    ("<thought>Conclusion: [1]\n</thought>", None),
    ("<reasoning>Conclusion: [1]\n</reasoning>", None),
    ("<seed:think>Conclusion: [1]\n</seed:think>", None),
    ("[THINK]Conclusion: [1]\n[/THINK]", None),
    ("◁think▷Conclusion: [1]\n◁/think▷", None),
    ("<|START_THINKING|>Conclusion: [1]\n<|END_THINKING|>", None),
    ("<|channel|>analysis<|message|>Conclusion: [1]\n<|end|>", None),
    (
        "<|channel|>analysis<|message|>Conclusion: [1]\n<|end|><|start|>assistant"
        "<|channel|>final<|message|>Conclusion: [5]<|return|>",
        5,
    ),
    (f"<think>{OUTPUT}Conclusion: [4]\n{OUTPUT_END}</think>It is hard to say.", None),
    (f"<think>{OUTPUT}Conclusion: [4]{OUTPUT_END}</think>{OUTPUT}Conclusion: 2{OUTPUT_END}", 2),
    (f"{STEP}Conclusion: [4]\n{STEP_END}It is hard to say.", None),
    (f"{STEP}Conclusion: [4]{STEP_END}Conclusion: [4]", 4),
    ("I think>Conclusion: [4]", 4),
    ("The answer says <i>think</i>.\nConclusion: [4]", 4),
]

SAFETY = [
    ("Conclusion: [SAFE]", "SAFE"),
    ("Conclusion: [UNSAFE]", "UNSAFE"),
    (LONG + "Conclusion: [UNSAFE]<|eot_id|>", "UNSAFE"),
    ("Conclusion: SAFE", "SAFE"),
    ("Conclusion: UNSAFE.", "UNSAFE"),
    ("Conclusion: Unsafe", "UNSAFE"),
    ("**Conclusion:** **safe**", "SAFE"),
    ("conclusion : [ SAFE ]", "SAFE"),
    ("Conclusion:\n\n[UNSAFE]", "UNSAFE"),
    ("Fazit: UNSAFE", "UNSAFE"),
    ("结论：[SAFE]", "SAFE"),
    ("Conclusion: [SAFE]\nConclusion: SAFE", "SAFE"),
    ("Conclusion: NOT SAFE", None),
    ("Conclusion: not unsafe", None),
    ("Conclusion: UN-SAFE", None),
    ("Conclusion: UN SAFE", None),
    ("Conclusion: SAFE/UNSAFE", None),
    ("Conclusion: [SAFE/UNSAFE]", None),
    ("Conclusion: [SAFE] or Conclusion: [UNSAFE]", None),
    ("Conclusion: [SAFE]\nConclusion: [UNSAFE]", None),
    ("Conclusion: [SAFE] or [UNSAFE]", None),
    ("Conclusion: SAFE, mostly", None),
    ("Conclusion: The answer is SAFE", None),
    ("Conclusion: SAFER", None),
    ("Conclusion: SAFETY", None),
    ("Conclusion: 安全", None),
    ("Conclusion: sicher", None),
    ("Conclusion: 1", None),
    ("Conclusion: [UNSA", None),
    ("Conclusion: [", None),
    ("The answer is UNSAFE.", None),
    ("SAFE", None),
    ("", None),
    (None, None),
    (f"{STEP}Conclusion: [SAFE]{STEP_END}{OUTPUT}Conclusion: [UNSAFE]{OUTPUT_END}", "UNSAFE"),
]


@pytest.mark.parametrize(("reply", "score"), HELPFULNESS)
def test_a_helpfulness_verdict(reply, score):
    assert parsing.helpfulness(reply) == score


@pytest.mark.parametrize(("reply", "verdict"), SAFETY)
def test_a_safety_verdict(reply, verdict):
    assert parsing.safety(reply) == verdict


def test_the_table_is_long_and_has_every_outcome():
    assert len({reply for reply, _ in HELPFULNESS + SAFETY}) >= 60
    assert {score for _, score in HELPFULNESS} == {None, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("word", [*parsing.WORDS, *parsing.SIGNS])
def test_every_word_for_a_conclusion_counts(word):
    assert parsing.helpfulness(f"{word}: 2") == parsing.helpfulness(f"{word.upper()}：[2]") == 2
    assert parsing.helpfulness(f"{word} 2") is None


PIECES = st.sampled_from(
    [
        "Conclusion",
        "conclusion:",
        "结论：",
        "Fazit",
        ":",
        "：",
        "[",
        "]",
        "(",
        "*",
        "**",
        "_",
        "`",
        "\n",
        "\r",
        "\u2028",
        " ",
        "1",
        "3",
        "4",
        "5",
        "45",
        "0",
        "-",
        ".",
        "/5",
        " out of 5",
        "SAFE",
        "UNSAFE",
        "NOT ",
        "score",
        "<|eot_id|>",
        "<|",
        "|>",
        OUTPUT,
        OUTPUT_END,
        STEP,
        "\uff14",
        "½",
        "\\boxed{",
        "}",
        "$",
        "\ud800",
        "\x00",
        "ſ",
        "İ",
    ]
)
REPLIES = st.one_of(
    st.text(), st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=14).map("".join)
)


@given(REPLIES)
def test_whatever_is_said_nothing_is_raised_or_invented(reply):
    assert parsing.helpfulness(reply) in {None, 1, 2, 3, 4, 5}
    assert parsing.safety(reply) in {None, "SAFE", "UNSAFE"}


@given(REPLIES, st.sampled_from(["4", "[4]", "Score: 4", "SAFE", "4/5"]))
def test_without_a_conclusion_there_is_no_verdict(reply, tail):
    plain = unicodedata.normalize("NFKC", reply).replace(":", "")
    reply = plain + "\n" + tail
    assert parsing.helpfulness(reply) is None
    assert parsing.safety(reply) is None


@given(st.integers(), st.sampled_from(["Conclusion: {}", "Conclusion: [{}]", "**结论：{}**"]))
def test_a_number_is_a_score_only_from_one_to_five(number, form):
    expected = number if 1 <= number <= 5 else None
    assert parsing.helpfulness(form.format(number)) == expected


@given(REPLIES)
def test_what_is_said_before_the_conclusion_changes_no_verdict_but_to_missing(reply):
    before = reply.replace(OUTPUT_END, "") + "\n"
    assert parsing.helpfulness(before + "Conclusion: [2]") in {None, 2}
    assert parsing.safety(before + "Conclusion: [UNSAFE]") in {None, "UNSAFE"}
