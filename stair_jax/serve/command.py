"""The command line: `stair-jax serve WORKDIR_OR_FOLDER`."""

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import os
import pathlib
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence

import jax

from stair_jax import chat, startup
from stair_jax.config import Config, default
from stair_jax.config.stages import PRM
from stair_jax.config.words import split_csv
from stair_jax.engine.request import GREEDY, Sampling
from stair_jax.log import bars
from stair_jax.log.metrics import Metrics
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.serve import running, served
from stair_jax.serve.limits import Limits
from stair_jax.serve.served import Served

log = logging.getLogger(__name__)

KEY = "STAIR_JAX_API_KEY"
_LEAST_KEY = 16  # characters: a key that is guessed is none
_SLOTS = 16  # of a folder's model
_BACKLOG = 256


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves models until SIGTERM or Ctrl-C, then ends what is under way, and itself.

    Args:
      arguments: of the command line, without the program's name; None for this process's own.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.INFO,
        force=True,
        handlers=[bars.StderrHandler()],
    )
    for noisy in ("absl", "httpx2", "jax", "orbax", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not sys.stderr.isatty():
        bars.quiet_libraries()
    try:
        failed = _serve(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if failed:
        sys.exit("error: the engine has failed, the log says how")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stair-jax serve",
        description="Serves models of a run, or of a Hugging Face folder, in OpenAI's protocol."
        f" The key that clients must send is read from {KEY} or --key_file.",
    )
    limits = Limits(slots=1)
    add = parser.add_argument
    add("place", type=pathlib.Path, metavar="WORKDIR_OR_FOLDER", help="a run's, or Hugging Face's")
    add("--models", default="", help='comma-separated: "sft,dpo-2"; the last one by default')
    add("--name", default="", help="what clients call the model, where there is only one")
    add("--search", action="store_true", help="loads the run's reward model, for option search")
    add("--host", default="127.0.0.1", help="address to listen at; all but loopback want a key")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--key_file", type=pathlib.Path, help="file with the key that clients must send")
    add(
        "--slots",
        type=int,
        help=f"sequences decoded together, a model; the run's, or {_SLOTS} of a folder",
    )
    add("--chunk", type=int, help="tokens between two events of a stream; the run's by default")
    add("--max_context", type=int, help="tokens of prompt and answer; the run's by default")
    add("--pool_bytes", type=int, default=0, help="of a model's key/value pool; 0: what is free")
    add("--max_tokens", type=int, default=limits.max_tokens, help="of an answer; 0: what fits")
    add("--queue", type=int, default=limits.queue, help="sequences that may wait for a slot")
    add("--body_bytes", type=int, default=limits.body_bytes, help="of a request")
    add("--timeout_s", type=float, default=limits.timeout_s, help="that a request may take")
    add("--drain_s", type=float, default=limits.drain_s, help="for what is under way at SIGTERM")
    add(
        "--prefix_least",
        type=float,
        help="lets clients begin an answer, where the reward model finds at least so much of the"
        " beginning, 0 to 1; wants --search. By default they may not",
    )
    add("--compile_later", action="store_true", help="starts at once; first requests wait instead")
    return parser


def _serve(options: argparse.Namespace) -> bool:
    """Serves until it is told to stop; returns whether it stopped because the engine failed."""
    key = _key(options)
    _check(options, key)
    startup.claim_memory()
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(_run_of(options))
        startup.keep_programs(run.config.compile_cache)
        names = split_csv(options.models)
        if len(names) > 1 and jax.default_backend() != "cpu" and not options.pool_bytes:
            raise ValueError(
                f"--pool_bytes: 0, expected a size for each of {len(names)} models; the first one"
                " would take the whole device"
            )
        listening = stack.enter_context(_socket(options))
        alias = options.name or (options.place.resolve().name if _is_folder(options.place) else "")
        models = served.load(run, names, search=options.search, alias=alias)
        if not options.compile_later:
            for model in models:
                model.engine.compile([GREEDY, Sampling()])
        return _listen(options, models, listening, key)


def _listen(
    options: argparse.Namespace, models: Sequence[Served], listening: socket.socket, key: str
) -> bool:
    limits = Limits(
        slots=sum(model.engine.occupancy["slots"] for model in models),
        queue=options.queue,
        body_bytes=options.body_bytes,
        max_tokens=options.max_tokens,
        timeout_s=options.timeout_s,
        drain_s=options.drain_s,
        prefix_least=options.prefix_least,
    )
    host, port = listening.getsockname()[:2]
    names = ", ".join(model.name for model in models)
    print(
        f"{names} of {options.place}: http://{running.name_of(host)}:{port}/v1"
        f" ({'a key is asked for' if key else 'no key'}); end with Ctrl-C",
        file=sys.stderr,
        flush=True,
    )
    return asyncio.run(running.listen(models, listening, limits, key))


def _check(options: argparse.Namespace, key: str) -> None:
    """Refuses settings that cannot work, by their flag."""
    least = {"slots": 1, "chunk": 1, "max_context": 2, "pool_bytes": 0, "max_tokens": 0}
    least |= {"queue": 0, "body_bytes": 1, "port": 0}
    for name, bound in least.items():
        if (value := getattr(options, name)) is not None and value < bound:
            raise ValueError(f"--{name}: {value}, expected {bound} or more")
    for name in ("timeout_s", "drain_s"):
        if not 0 < getattr(options, name) < float("inf"):
            raise ValueError(f"--{name}: {getattr(options, name)}, expected more than 0")
    if (unit := options.prefix_least) is not None:
        if not 0 <= unit <= 1:
            raise ValueError(f"--prefix_least: {unit}, expected 0 to 1")
        if not options.search:
            raise ValueError("--prefix_least: asks the reward model, which --search loads")
    if options.name and len(split_csv(options.models)) > 1:
        raise ValueError(f"--name: {options.name!r}, and there are several models")
    if not key and not _is_loopback(options.host):
        raise ValueError(
            f"--host: {options.host} can be reached from elsewhere, which wants a key: set {KEY} or"
            " --key_file"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _key(options: argparse.Namespace) -> str:
    """Returns the key that clients must send; "" for none.

    Raises:
      ValueError: for one that cannot be sent, or can be guessed.
    """
    given, place = os.environ.pop(KEY, ""), KEY
    if options.key_file is not None:
        given, place = options.key_file.read_text(encoding="utf-8").strip(), "--key_file"
        if not given:
            raise ValueError(f"--key_file: {options.key_file} is empty, expected a key")
    if not given:
        return ""
    if len(given) < _LEAST_KEY or not given.isascii() or not given.isprintable() or " " in given:
        raise ValueError(
            f"{place}: expected {_LEAST_KEY} or more printable ASCII characters without spaces"
        )
    return given


def _is_folder(place: pathlib.Path) -> bool:
    """Returns whether a place is a Hugging Face folder, and no run's."""
    config = place / "config.json"
    return config.is_file() and not (place / "lineage.json").exists() and _of_hf(config)


def _of_hf(config: pathlib.Path) -> bool:
    return '"model_type"' in config.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _run_of(options: argparse.Namespace) -> Iterator[Run]:
    """Yields the run of a workdir; of a Hugging Face folder, one that has nothing else.

    Raises:
      ValueError: where it is neither, or has no reward model where one is wanted.
    """
    place = options.place
    if not (place / "config.json").is_file():
        raise ValueError(
            f"{place}: no config.json, expected the workdir of a run or a Hugging Face folder"
        )
    if not _is_folder(place):
        yield _run(_with(chat.config_of(place), options), place, options)
        return
    if options.models:
        raise ValueError(f"--models: {place} is a folder of one model")
    config = default()
    config.model.checkpoint = str(place)
    config.engine.slots = _SLOTS
    with tempfile.TemporaryDirectory() as name:
        yield _run(_with(config, options), pathlib.Path(name), options)


def _run(config: Config, workdir: pathlib.Path, options: argparse.Namespace) -> Run:
    lineage = Lineage(workdir / "lineage.json")
    if options.search and not lineage.finished(PRM.artefact()):
        raise ValueError(
            f"--search: asks a reward model, and there is none in {options.place}; run stage prm"
            " first"
        )
    return Run(config, workdir, lineage, Metrics(workdir))


def _with(config: Config, options: argparse.Namespace) -> Config:
    """Returns a configuration with the engine that the options describe, on one device."""
    config.mesh.update(shape=(1, 1, 1), replicas=0)  # whatever machine the run was made for
    given = {name: getattr(options, name) for name in ("slots", "chunk", "max_context")}
    config.engine.update({name: value for name, value in given.items() if value is not None})
    config.engine.pool_bytes = options.pool_bytes
    return config


def _socket(options: argparse.Namespace) -> socket.socket:
    """Returns a socket that listens where the options say.

    Raises:
      ValueError: where it cannot.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((options.host, options.port))
    except (OSError, OverflowError) as error:
        found.close()
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"--host, --port: {options.host}:{options.port}: {why}") from None
    found.listen(_BACKLOG)
    return found
