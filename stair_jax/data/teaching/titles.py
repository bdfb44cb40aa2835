"""Titles of the steps of a worked calculation, taken from the sentence of the step itself.

"Natalia sold 48/2 = 24 clips in May." is headed "How many clips Natalia sold in May". A title says
what a step is after and never what it comes to: the number behind the last "=" is not in it.
"""

import re
from collections.abc import Sequence

LONGEST = 70  # characters

# Words that lead into a sentence and say nothing of what is computed.
_LEAD = re.compile(
    r"(?:so|then|thus|therefore|hence|now|and|but|also|next|finally|lastly|first(?:ly)?|second(?:ly)?"
    r"|third(?:ly)?|that means|this means|that is|which means|meaning|in conclusion|in total"
    r"|altogether|overall|combined|as a result|consequently|accordingly|we know|we can see|we see"
    r"|this is|it follows|after that|from there|to do this|in all|in the end)"
    r"\b(?:\s+that\b)?[\s,:]*",
    re.IGNORECASE,
)
# A clause before the main one; it says when or why, and the main one says what.
_CLAUSE = re.compile(
    r"(?:if|since|because|as|when|while|after|given|with|for|in|on|at|by|to|out of|of|from|before"
    r"|during|once|assuming|knowing|considering|due to"
    r"|at the end of|adding|working|using)\b[^,]*[a-z][^,]*,"
    r"\s*(?:then\s+)?(?=[A-Za-z])",
    re.IGNORECASE,
)
_REASON = re.compile(r"\s*,?\s*\b(?:because|since|as there|meaning|which means|so that)\b.*", re.I)

_AMOUNT = r"\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?"
_TOKEN = re.compile(rf"(?P<number>{_AMOUNT})|(?P<word>[^\W\d]+)|(?P<sign>\S)")
_EQUALS = re.compile(rf"=\s*-?(?P<result>{_AMOUNT})")
_NUMBER = re.compile(rf"(?<![\w.]){_AMOUNT}(?!\d)")
_SIGNS = "+-*/x\u00d7\u00f7\u2013\u2212()[]=^"
# What a step is that says more, or less, than a number in words.
_GIVEN = re.compile(r"[=<>|*+^{}\\/()\[\]:]|\bx\d|\d\s*x\s*\d|\d(?:st|nd|rd|th)\b|^let\b", re.I)
_UNITS = 3  # words that may stand behind a number within a calculation

_COPULA = re.compile(
    r"(?:\s+(?:is|are|was|were|will be|would be|equals?|be|comes to|becomes?|to"
    r"|therefore|now|then|thus|a|about))+$",
    re.I,
)
_VERB = re.compile(
    r"(?:is|are|was|were|has|have|had|will|would|can|could|do|does|did|go|goes|went|remain|remains"
    r"|cost|costs|get|gets|need|needs|stay|stayed|received|came|come)\b",
    re.IGNORECASE,
)
_STOP = re.compile(
    r"\s+(?:in|on|at|to|from|for|per|than|by|with|each|every|if|when|while|after|before|because"
    r"|since|and|that|which|who|left|altogether|total|more than|until|during|over|into|out|so|as"
    r"|were|was|are|is|have|has|had|a|an|the|then|now|this|these|those|they|he|she|it|every)\b|[,;:(]",
    re.IGNORECASE,
)
_LOOSE_WORDS = (
    r"a total of|total of|about|only|and|or|of|a|an|the|by|to|for|at|with|than|x|in|as|another|from"
    r"|on|that|which|so|then|per"
)
_LOOSE_IN_QUESTION = re.compile(rf"(?:[\s,;:.=($*/+-]+|\b(?:{_LOOSE_WORDS}))+$", re.I)
_LOOSE = re.compile(
    rf"(?:[\s,;:.=($*/+-]+|\b(?:{_LOOSE_WORDS}|is|are|was|were|will be|be|equals?))+$", re.I
)
_SOUGHT = re.compile(
    r"\bto (?:find|get|determine|calculate) ((?:the|how|his|her|their|that|its)\b.+)", re.I
)
_FILLER = re.compile(r"\s*(?:\$|\ba total of|\bonly|\babout|\bexactly|\bjust|\btotal|[(\[])+$")
_DETERMINER = re.compile(
    r"(?:the|his|her|their|its|our|my|your|half|twice|each|one|a|an|total|\w+ times"
    r"|\w+['\u2019]s?)\b",
    re.I,
)
_AMOUNT_WORD = re.compile(r"\b(?:total|cost|price|income|profit|number|sum|age)s?\b", re.I)
_NO_QUESTION = re.compile(
    r"(?:find|multiply|divide|add|subtract|calculate|convert|let|combining|dividing|multiplying"
    r"|subtracting|adding|simplifying|take|set|we get|solving|there's|of|in|for|since|if|do|half"
    r"|twice|\w+ times)\b",
    re.IGNORECASE,
)
_DANGLING = re.compile(r"(?:\b(?:of|than|by|for|and|as|with|the)|,)$", re.IGNORECASE)
_SMALL = frozenset(
    re.findall(
        r"\w+",
        "she he they it there the this that these those we you each in on at a an his her their its"
        " all every one both together half only some most how what calculation",
    )
)
_TIMES = re.compile(r"(?<=[\d)%])\s*[x\u00d7]\s*(?=[\d$(])|\u00d7")  # signs, and no letters
_LETTER = re.compile(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])(?!\s+[A-Za-z]{2})")  # for a number
_OPERATIONS = {  # by the last sign of a calculation
    "+": "Adding up",
    "-": "Taking away",
    "\u2212": "Taking away",
    "*": "Multiplying",
    "/": "Dividing",
    "\u00f7": "Dividing",
}
_UNSAID = re.compile(r"[=<>|*+^{}\\]|\d\s*/\s*\d|\bx\d|\d\s*x\s*\d")  # what no title has


def title_of(sentence: str) -> str:
    """Returns what a step is after, as a title; "" where its sentence does not say.

    Args:
      sentence: one line of a worked solution, without annotations.
    """
    text = _core(sentence)
    result = _last(_EQUALS, text)
    if result is None:
        return _short(text)
    before, after = text[: _start(text, result.start())], text[result.end() :]
    title = _short(_asked(before, result["result"], after))
    number = re.sub(r"[$%]", "", result["result"])
    told = re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", title)
    title = _short(title[: told.start()]) if told else title
    return title or _unnamed(text, result)


def _unnamed(text: str, result: re.Match[str]) -> str:
    """Returns a title of a calculation whose sentence has no words for what it is after."""
    before, after = text[: result.start()].strip(), text[result.end() :].strip()
    if after and (title := _short(_asked("", result["result"], after))):
        return title
    letters = sorted(set(_LETTER.findall(_TIMES.sub("*", text))))
    if before in letters:
        return f"The value of {before}"
    if letters and not re.search(r"[A-Za-z]{3}", after):
        return f"An equation for {' and '.join(letters)}"
    signs = re.findall(r"[+*/\u00f7]|[-\u2212](?=\s*[\d$(])", _TIMES.sub("*", before))
    return _OPERATIONS.get(signs[-1], "") if signs else ""


def _start(text: str, end: int) -> int:
    """Returns where the calculation begins whose last "=" is at `end`."""
    start, words, open_ = end, 0, True  # open: an operand is still due on the left
    for token in reversed(list(_TOKEN.finditer(text, 0, end))):
        if token.lastgroup == "number":
            start, words, open_ = token.start(), 0, False
        elif token[0] in _SIGNS:
            words, open_ = 0, True
        elif token.lastgroup == "word" and open_ and words < _UNITS:
            words += 1  # the unit of a number further left, perhaps
        else:
            break
    return start


def distinct(titles: Sequence[str]) -> list[str]:
    """Returns titles of which no two are equal; one without words is called by its place."""
    found: list[str] = []
    last = len(titles)
    for place, title in enumerate(titles, start=1):
        name = title or ("The result" if place == last else f"Calculation {place}")
        again = name
        count = 1
        while again.lower() in (other.lower() for other in found):
            count += 1
            again = f"{name}, part {count}"
        found.append(again)
    return found


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=re.Match.start, default=None)


def _core(sentence: str) -> str:
    """Returns the main clause that has the calculation."""
    text = " ".join(sentence.split()).rstrip(" .")
    parts = re.split(r"(?<=[a-z0-9])[.;]\s+(?=[A-Z])", text)
    text = next((part for part in reversed(parts) if _EQUALS.search(part)), parts[0])
    for _ in range(3):
        lead = _LEAD.match(text)
        if lead and lead.end() < len(text):
            text = text[lead.end() :]
        clause = _CLAUSE.match(text)
        if clause and ("=" in text[clause.end() :] or "=" not in text):
            text = text[clause.end() :]
    reason = _REASON.search(text)
    if reason and reason.start() > 8 and re.search(r"\d", text[: reason.start()]):
        head = text[: reason.start()]
        number = _NUMBER.search(head)
        if number and not _EQUALS.search(head):
            # "He eats 32 because 2 x 16 = 32": the number is what was to be found.
            text = f"{head[: number.start()]}0 = {head[number.start() :]}"
    told = _NUMBER.search(text)
    if told and not _GIVEN.search(text) and text[told.start() - 1] != "-":
        # "There are 52 weeks in a year": what a step only says has its number for a result, too.
        text = f"{text[: told.start()]}0 = {text[told.start() :]}"
    return text


def _asked(before: str, result: str, after: str) -> str:
    """Returns the title of a sentence that says `before`, a calculation, and `after`."""
    before, after = before.strip(), after.strip()
    if ":" in before or before.endswith("="):
        return before.split(":")[0].rstrip(" =")
    money = "$" in result or before.endswith("$") or after.startswith(("dollars", "cents"))
    before = _FILLER.sub("", before).strip()
    if ", " in before:  # the main clause comes last
        before = before.rsplit(", ", 1)[1]
        before = _LEAD.sub("", before, count=1) if _LEAD.match(before) else before
    named = _COPULA.sub("", before)
    if named != before and _is_amount(named):
        return named
    if not before:
        word = "What percent" if "%" in result else "How much" if money else "How many"
        return f"{word} {after}" if after else ""
    if _NO_QUESTION.match(before) or _DANGLING.search(before):
        return before
    before = _lowered(before)
    if not after and " " not in before:
        return before  # "Remaining = 6"
    if money or not after:
        rest = re.sub(r"^(?:dollars|cents)\b", "", after).strip()
        if rest.startswith("more"):
            return f"How much more {before} {rest[4:]}"
        return f"How much {before} {rest}"
    noun, rest = _noun(after)
    word = "What percent" if "%" in result else "How many"
    return f"{word} {noun} {before} {rest}"


def is_small(word: str) -> bool:
    """Returns whether a word has a capital only where it begins a sentence; names always do."""
    return word.lower() in _SMALL or bool(_NO_QUESTION.match(word))


def _lowered(text: str) -> str:
    """Returns a text that no longer begins a sentence; a name keeps its capital."""
    first, _, rest = text.partition(" ")
    return f"{first.lower()} {rest}" if first.lower() in _SMALL else text


def _is_amount(text: str) -> bool:
    """Returns whether what stands before "is" names an amount: "The total cost"."""
    return bool(_AMOUNT_WORD.search(text) or (" " in text and _DETERMINER.match(text)))


def _noun(after: str) -> tuple[str, str]:
    """Returns what is counted and what follows it."""
    if _VERB.match(after) or _STOP.match(f" {after}"):
        return "", after
    stop = _STOP.search(after)
    if not stop:
        return after, ""
    return after[: stop.start()].strip(), after[stop.start() :].strip()


def _short(title: str) -> str:
    """Returns a title of at most `LONGEST` characters that ends in a word of weight."""
    title = " ".join(title.split()).strip(" ,;:.-=")
    if sought := _SOUGHT.search(title):
        title = f"Find {sought[1]}"
    title = re.split(r"\s*(?:[,;]\s+(?:so|and|which|but|then|because)\b|\s=\s)", title)[0]
    if len(title) > LONGEST:
        title = title[: LONGEST + 1].rsplit(" ", 1)[0]
    if title.count("=") or title.lower().startswith(("how much how", "how many how")):
        return ""
    loose = _LOOSE_IN_QUESTION if title.startswith(("How ", "What ")) else _LOOSE
    title = loose.sub("", title).strip(" ,;:.-")
    if len(title.split()) < 1 or not re.search(r"[A-Za-z]{2}", title) or _UNSAID.search(title):
        return ""
    return title[0].upper() + title[1:]
