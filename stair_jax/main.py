"""Entry point: flags in, a run out. `python -m stair_jax.main --config=configs/tiny.py`."""

import argparse
import difflib
import errno
import logging
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from importlib import metadata

import jax
from absl import app, flags
from ml_collections import config_flags

from stair_jax import chat, interrupt, mesh, pipeline, startup, xla_flags
from stair_jax.config import Config, keys, redaction
from stair_jax.config.checks import validate
from stair_jax.config.schema import KNOBS
from stair_jax.config.stages import PREPARE
from stair_jax.evals.report import html
from stair_jax.log import bars, progress
from stair_jax.plan import planning
from stair_jax.train.loop import NonFiniteError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Run configuration, a file of configs/.", lock_config=True
)
# What Python says of a value that is no number, and what we say.
_NUMBERS = (
    (re.compile("invalid literal for int.. with base 10: ('.*?')"), r"\1, expected a whole number"),
    (re.compile("could not convert string to float: ('.*?')"), r"\1, expected a number"),
)
_USAGE = """\
STAIR: SFT, rounds of search and step-level DPO, a reward model, search under it.

stair-jax --config=FILE [--config.KEY=VALUE ...]   runs the stages that the configuration names
stair-jax prepare --config=FILE ...   makes a recipe's data sets alone, and shows three rows
stair-jax chat WORKDIR [--model=NAME] [--search=WAY]   talks to a model of a run
stair-jax report WORKDIR   writes a page to look at: table, trees, pairs, answers, how it went
stair-jax serve WORKDIR_OR_FOLDER ...   serves models in OpenAI's protocol
stair-jax --config=FILE --config.plan=a800x8   tells whether it fits a machine, without one
stair-jax keys [WORD]   lists the keys, all or those with WORD: meaning, unit and default

FILE is one of configs/ or one of your own; configs/tiny.py needs no download and no GPU.
--config.workdir=DIR is where everything of a run lies; the same command goes on with it.
--config.status tells what is done and what is left. `python -m stair_jax.main` is `stair-jax`.
"""


def main(argv: list[str]) -> None:
    """Runs the stages that the configuration names."""
    if len(argv) > 1:
        sys.exit(f"error: unknown arguments {argv[1:]}; stair-jax --help says what there is")
    logging.basicConfig(  # in place of absl's handler
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.INFO,
        force=True,
        handlers=[bars.StderrHandler()],
    )
    if sys.stderr.isatty():
        progress.show_on(bars.Bars())
    else:
        bars.quiet_libraries()
    for noisy in ("absl", "httpx2", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(redaction.hide_in_record)
    interrupt.install()
    config = _CONFIG.value
    if config.plan:
        sys.exit(_planned(config))
    try:
        validate(config)  # first: what follows reads it
        mesh.show_cpus(config.mesh.shape, config.mesh.replicas)
        startup.claim_memory()
        kept = bool(config.compile_cache or startup.kept_in())
        xla_flags.add(deterministic=config.deterministic, kept=kept)
        startup.keep_programs(config.compile_cache)
        pipeline.run(config, config_flags.get_override_values(flags.FLAGS["config"]))
    except OSError as error:
        sys.exit(redaction.hide(f"error: {_of_system(error, config.workdir)}"))
    except (ValueError, NonFiniteError) as error:
        sys.exit(redaction.hide(f"error: {error}"))
    except interrupt.Stopped as stopped:
        print(f"{stopped}; the same command goes on from here", file=sys.stderr)
        sys.exit(stopped.status)


def _planned(config: Config) -> int:
    """Returns the exit code of a plan; a configuration that cannot work has none."""
    try:
        validate(config)
    except ValueError as error:
        print(redaction.hide(f"error: {error}"), file=sys.stderr)
        return planning.NO_PLAN
    return planning.main(config)


def _of_system(error: OSError, workdir: str) -> str:
    """Returns what the system says; of a full disk it names no file, so the workdir is named."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        return f"config.workdir: {workdir}: {error.strerror}; the same command goes on from here"
    return str(error)


def command_line() -> None:
    """Does what the command line asks for: a run, or one of the further words."""
    words = sys.argv[1:]
    if words[:1] == ["chat"]:
        chat.main(words[1:])
    elif words[:1] == ["report"]:
        _report(words[1:])
    elif words[:1] == ["serve"]:
        _serve(words[1:])
    elif words[:1] == ["keys"]:
        try:
            _print(keys.listed(" ".join(words[1:]).removeprefix("config.")))
        except ValueError as error:
            sys.exit(f"error: {error}")
    elif "--version" in words:
        print(f"stair-jax {metadata.version('stair-jax')}, jax {jax.__version__}")
    elif {"--help", "-help", "-h", "--helpfull"} & set(words):
        print(_USAGE, end="")
    else:
        jax.config.config_with_absl()
        if words[:1] == [PREPARE.name]:
            sys.argv[1:] = [*words[1:], f"--config.stages={PREPARE.name}"]
        app.run(main, flags_parser=_parsed)


def _report(words: Sequence[str]) -> None:
    """Writes the report of a workdir, and prints where it lies."""
    parser = argparse.ArgumentParser(
        prog="stair-jax report",
        description="Writes WORKDIR/report/index.html, a page with all that a run has made. The"
        " run may be unfinished, running or killed.",
    )
    parser.add_argument("workdir", type=pathlib.Path, help="of the run")
    try:
        print(html.write(parser.parse_args(words).workdir))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _serve(words: Sequence[str]) -> None:
    """Serves models; a run needs neither FastAPI nor uvicorn, so they may be missing."""
    try:
        from stair_jax.serve import command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn"):
            raise
        sys.exit(f"error: serve needs {error.name}: pip install 'stair-jax[serve]'")
    command.main(words)


def _print(text: str) -> None:
    """Prints what may be long: whoever reads it through `head` has soon read enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(1)


def _parsed(argv: Sequence[str]) -> list[str]:
    """Parses the flags; ends with one line where they cannot be."""
    try:
        _check_file(argv)
        _check_keys(argv)
        return flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:
        said = f"error: {_line(error)}"
    except Exception as error:  # whatever the code of a configuration's file raises
        said = f"error: {_file(argv)}: {type(error).__name__}: {_line(error)}"
    if any(word.lstrip("-").startswith("config.plan") for word in argv):
        print(redaction.hide(said), file=sys.stderr)
        sys.exit(planning.NO_PLAN)
    sys.exit(redaction.hide(said))


def _line(error: Exception) -> str:
    """Returns what an error says in one line; of a traceback in it, how that ends."""
    told, _, trace = str(error).partition("Traceback (most recent call last)")
    line = " ".join([*told.split(), *trace.strip().rpartition("\n")[2].split()])
    for python, ours in _NUMBERS:
        line = python.sub(ours, line)
    return line


def _file(argv: Sequence[str]) -> str:
    """Returns the value of --config; empty where it is not given."""
    for number, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config"):
            return value if equals else next(iter(argv[number + 1 :]), "")
    return ""


def _check_file(argv: Sequence[str]) -> None:
    """Refuses a command without a file of a configuration, naming the nearest.

    Raises:
      ValueError: for a file that is missing or not there.
    """
    given = _file(argv)
    if sum(word.partition("=")[0] in ("--config", "-config") for word in argv) > 1:
        raise ValueError("--config: found more than once, expected one file of a configuration")
    if not given:
        raise ValueError("--config is missing, expected --config=FILE, such as configs/tiny.py")
    path = pathlib.Path(given.partition(":")[0])
    if path.is_file():
        return
    there = sorted({*path.parent.glob("*.py"), *pathlib.Path("configs").glob("*.py")})
    known = {file.name: str(file) for file in there}
    near = difflib.get_close_matches(path.name, known, n=1, cutoff=0.5)
    names = [known[near[0]]] if near else sorted(known.values())
    hint = f"; did you mean {', '.join(names)}?" if names else ""
    raise ValueError(f"--config: {path}: no such file{hint}")


def _check_keys(argv: Sequence[str]) -> None:
    """Refuses an override of a key that there is not, naming the nearest.

    Raises:
      ValueError: for the first such flag.
    """
    for word in argv[1:]:
        flag = word.partition("=")[0]
        key = flag.lstrip("-").removeprefix("no").removeprefix("config.")
        if not flag.startswith("-") or "config." not in flag or key in KNOBS:
            continue
        if inside := [name for name in sorted(KNOBS) if name.startswith(f"{key}.")]:
            raise ValueError(f"{flag}: a section, expected one of its keys, such as {inside[0]}")
        near = " or ".join(f"config.{name}" for name in keys.nearest(key))
        hint = f"did you mean {near}? " if near else ""
        raise ValueError(f"{flag}: no such key; {hint}(stair-jax keys lists all)")


if __name__ == "__main__":
    command_line()
