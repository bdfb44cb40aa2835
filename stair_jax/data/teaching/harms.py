"""Kinds of harm: which one a request is about, and why it is one. Our own list and wording.

HarmBench names a category of each behaviour (SemanticCategory); AdvBench has none, so the words of
a request decide, the first kind that matches.
"""

import re
from collections.abc import Mapping

OTHER = "other"

# By kind: words of a request, in any case. The order decides where two kinds match.
_WORDS: Mapping[str, str] = {
    "self_harm": r"suicid|self-?harm|anorexi|bulimi|eating disorder|starv",
    "hate": r"racis|racial|sexis|hate\b|discriminat|stereotyp|homophob|minorit|slur|ethnic|xenophob"
    r"|antisemit|bigot|oppress|dehumani[sz]",
    "children": r"child|minors?\b|underage|teenager|kids",
    "weapons": r"bomb|explosi|weapon|firearm|guns?\b|ammunition|chemical|poison|anthrax|nerve agent"
    r"|bioweapon|biological",
    "violence": r"terror|murder|kill|assassinat|assault|violen|tortur|kidnap|hijack a|physical harm"
    r"|physically|mass shoot|riot|cannibal|cruel|sabotag|hit-and-run|reckless|dangerous stunt"
    r"|vandal|radicali[sz]|start a fire|chaos|arson|harm animals",
    "drugs": r"drug|meth\b|heroin|cocaine|narcotic|mdma|lsd\b|fentanyl",
    "misinformation": r"misinform|disinform|fake news|conspira|propaganda|hoax|false information"
    r"|election|vaccin|climate|mislead|rumou?r",
    "identity": r"identity|phish|personal (?:info|data)|password|credit card|social security"
    r"|login|credential|medical record|sensitive information|user data"
    r"|confidential data|bank",
    "cyber": r"hack|malware|virus|ransom|exploit|ddos|botnet|keylog|trojan|worm|intrusion|breach"
    r"|inject|spam|crack|firewall|backdoor|cyber ?attack|webcam|digital rights|network"
    r"|malicious|unauthori[sz]ed|crash a computer|deletes files|denies access|unsolicited",
    "harassment": r"cyber-?bull|bully|harass|stalk|cyberstalk|blackmail|defam|revenge|ruin|threaten"
    r"|intimidat|insult|dox|false accus|spy|spies|surveil|inflammatory|reputation"
    r"|without (?:their|his|her) (?:knowledge|consent)",
    "fraud": r"fraud|scam|launder|insider|counterfeit|fake|forg|ponzi|pyramid|embezzl|tax|bribe"
    r"|cheat|manipulat|steal|theft|rob|shoplift|smuggl|pirat|deceiv|trick|plagiari"
    r"|not (?:even )?used",
    "illegal": r"illegal|crim|law enforcement|traffick|trespass|break into|infiltrat|correctional"
    r"|pick a lock|evad|escape",
}
_KINDS = {kind: re.compile(rf"\b(?:{words})", re.IGNORECASE) for kind, words in _WORDS.items()}

# HarmBench's SemanticCategory, as it is spelt there, by kind.
HARMBENCH: Mapping[str, str] = {
    "chemical_biological": "weapons",
    "cybercrime_intrusion": "cyber",
    "misinformation_disinformation": "misinformation",
    "harassment_bullying": "harassment",
    "copyright": "copyright",
    "illegal": "illegal",
    "harmful": "harmful",
}

BLOODLESS = ("copyright",)  # kinds that take something from people and hurt nobody
REASONS: Mapping[str, tuple[str, str, str]] = {
    "self_harm": (
        "It could push somebody who is already in danger towards hurting themselves.",
        "Words like these reach people at their most fragile, and what they do cannot be undone.",
        "It presents injury to oneself as a way out, which puts lives at risk.",
    ),
    "children": (
        "Children would be the ones to suffer, and they cannot protect themselves.",
        "It puts minors in danger, which no purpose makes up for.",
        "Those who would pay for this are young and rely on others to keep them safe.",
    ),
    "weapons": (
        "Such knowledge lets one person injure or kill many.",
        "What it describes can maim people far beyond anybody's control.",
        "A dangerous device or substance would come within reach of those who mean harm.",
    ),
    "violence": (
        "It prepares or celebrates hurting others, and real people would bleed for it.",
        "Bodily harm to others is the aim or the likely result.",
        "It makes violence easier to carry out or easier to accept.",
    ),
    "drugs": (
        "It would help dangerous substances to reach people, and addiction follows.",
        "Making or dealing in such substances is against the law and ruins health.",
        "Those who use what comes of this may die of it.",
    ),
    "hate": (
        "It degrades people for what they are, and contempt like that grows into mistreatment.",
        "It singles out a group and makes unfair treatment of its members look right.",
        "Prejudice would be spread, at the cost of those who bear it every day.",
    ),
    "harassment": (
        "A particular person would be frightened, shamed or followed against their will.",
        "It invades somebody's life and can leave them in fear for years.",
        "Its target has a right to be left in peace, and this takes it away.",
    ),
    "identity": (
        "People would lose their data, their money or control of their accounts.",
        "It takes what is private from people who never agreed to it.",
        "Whoever is deceived by this pays for it, often for a long time.",
    ),
    "cyber": (
        "It would break into or damage systems that other people depend on.",
        "Owners and users of those systems never agreed, and they would carry the loss.",
        "Tools of this sort spread beyond any target and are hard to stop.",
    ),
    "fraud": (
        "It works by deceiving people or by taking what belongs to them.",
        "Somebody would be cheated, and the law treats it as a crime for that reason.",
        "The gain of one is the loss of others who did nothing wrong.",
    ),
    "misinformation": (
        "It would lead people to believe and act on what is not true.",
        "Falsehoods of this kind wear down trust and can cost health or lives.",
        "Readers would be misled on a matter that they need the truth about.",
    ),
    "copyright": (
        "It asks for a protected work at length, which belongs to those who made it.",
        "Giving out such a text in full would take the authors' right to decide about it.",
        "The work is under copyright, and a long copy is not mine to hand out.",
    ),
    "illegal": (
        "It would break the law, and others would bear the consequences.",
        "What it aims at is a crime that has victims.",
        "The law forbids this in order to protect people, and helping would put them at risk.",
    ),
    "harmful": (
        "Somebody could come to serious harm through it.",
        "It would make something hurtful look acceptable or easy.",
        "The likely outcome is an injury to somebody's body or mind.",
    ),
    OTHER: (
        "It would cause harm to others that no benefit outweighs.",
        "Acting on it would hurt people or mislead them.",
        "The purpose behind it is to do damage.",
    ),
}


def kind_of(request: str, category: str = "") -> str:
    """Returns the kind of harm that a request is about, a key of `REASONS`.

    Args:
      request: what is asked for.
      category: HarmBench's SemanticCategory, or a kind; "": the words of the request decide.

    Raises:
      ValueError: for a category that is neither.
    """
    if category:
        kind = HARMBENCH.get(category, category)
        if kind not in REASONS:
            raise ValueError(
                f"category {category!r} found, expected one of {sorted({*HARMBENCH, *REASONS})}"
            )
        return kind
    return next((kind for kind, words in _KINDS.items() if words.search(request)), OTHER)
