"""What messages call the settings of an endpoint: several sections have one."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Naming:
    """Dotted keys of settings, without "config." in front.

    Attributes:
      endpoint: holds the address.
      model: holds the model's name; the same where one setting holds both.
      draws: what the names of temperature, top_p and max_tokens begin with.
      failed: says that so many questions in a row had no reply.
    """

    endpoint: str
    model: str
    draws: str
    failed: str


JUDGE = Naming("judge.endpoint", "judge.model", "judge.", "no judgement on {} answers in a row")
TEACHER = Naming(
    "recipe.teacher", "recipe.teacher", "recipe.teacher_", "no reply to {} questions in a row"
)
