"""Uploading a folder to the Hugging Face hub.

Its client hashes the files first and sends what the repository lacks: what is there already is not
sent a second time, and where nothing has changed there is no commit either.
"""

import pathlib

import huggingface_hub
from huggingface_hub.utils import validate_repo_id

from stair_jax.config import redaction

_KEY = "config.export.push"
# What an earlier export may have left in the repository: weights in more, or in fewer files.
_STALE = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]


def check(repo: str) -> None:
    """Refuses an upload that cannot work, without asking the hub.

    Raises:
      ValueError: for a name that no repository can have, for no token, or where the hub's client
        was told to stay offline.
    """
    if not _is_name(repo):
        raise ValueError(
            f"{_KEY}: {repo!r} is no name of a repository, expected owner/name, of letters, digits,"
            " '-', '_' and '.'"
        )
    if huggingface_hub.is_offline_mode():
        raise ValueError(
            f"{_KEY}: HF_HUB_OFFLINE is set, under which nothing is uploaded; unset it"
        )
    if not huggingface_hub.get_token():
        raise ValueError(
            f"{_KEY}: no token for the Hugging Face hub; set HF_TOKEN, or run `hf auth login`"
        )


def _is_name(repo: str) -> bool:
    owner, slash, name = repo.partition("/")
    try:
        validate_repo_id(repo)
    except ValueError:
        return False
    return bool(owner and slash and name)


def push(folder: pathlib.Path, repo: str, *, private: bool) -> str:
    """Uploads a folder to a repository, which is made where it is missing; returns its address.

    Raises:
      ValueError: whatever went wrong, in one line; also where the repository is public and was to
        be private.
    """
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        public = private and not api.repo_info(repo).private
        if not public:
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                delete_patterns=_STALE,
                commit_message=f"Export {folder.name}",
            )
    except Exception as error:  # the hub's client raises its own, httpx's and OS errors
        raise ValueError(f"{_KEY}: {repo}: {_reason(error)}") from error
    if public:
        raise ValueError(
            f"{_KEY}: {repo} is public; upload there with --config.export.push_private=False, or"
            " make it private first"
        )
    return str(address)


def _reason(error: Exception) -> str:
    """Returns what went wrong in one line, the cause of the cause too, without the token."""
    first = error
    while isinstance(first.__cause__, Exception):
        first = first.__cause__
    told = dict.fromkeys(f"{type(one).__name__}: {one}" for one in (error, first))
    said = " ".join(" ".join(told).split())
    token = huggingface_hub.get_token()
    return said.replace(token, redaction.HIDDEN) if token else said
