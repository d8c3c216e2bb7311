"""Bring weights from the cache or from the net, or say at once why not."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipretrieval.errors import WeightsUnavailableError

__all__ = ["ADVICE", "check_hub", "fetch_config", "fetch_tag"]

ADVICE = (
    "Pass pretrained='/path/to/checkpoint', or model='local-dir:/path/to/folder' holding "
    "open_clip_config.json and the weights, or pretrained=None for random weights; stage='pixel' needs none."
)
_CONFIG = "open_clip_config.json"


def fetch_tag(tag: dict[str, Any]) -> Path:
    """Return the file with the weights of an entry of open_clip's catalogue; see `ModelSource`.

    Raises
    ------
    WeightsUnavailableError
        If they are not in the cache and cannot be fetched.
    """
    if "timm_tag" in tag:
        return _fetch_of_timm(tag["cfg"])
    if "tag" in tag:
        from open_clip import get_pretrained_cfg

        tag = get_pretrained_cfg(tag["model"], tag["tag"])
    hub, url = tag.get("hf_hub", ""), tag.get("url", "")
    if hub:
        repo, name = os.path.split(hub)
        return _fetch_from_hub(repo, name or None)
    from open_clip import pretrained as catalogue

    try:
        _check_reachable(urlsplit(url).hostname)
        return Path(catalogue.download_pretrained(tag))
    except Exception as error:
        raise _unavailable(url, error) from error


def _fetch_from_hub(repo: str, name: str | None) -> Path:
    """Return the weights file of a hub repository, safetensors where it has them."""
    default = "open_clip_pytorch_model.bin"
    cached = _cached(repo, "open_clip_model.safetensors") or _cached(repo, name or default)
    if cached is not None:
        return cached
    from open_clip import pretrained as catalogue

    try:
        _check_reachable(_hub_host())
        return Path(catalogue.download_pretrained_from_hf(repo, filename=name))
    except Exception as error:
        raise _unavailable(f"hf-hub:{repo}", error) from error


def _fetch_of_timm(cfg: dict[str, Any]) -> Path:
    """Return the weights file of an entry of timm's registry, safetensors where it has them."""
    repo, named = cfg.get("hf_hub_id"), cfg.get("hf_hub_filename")
    if not repo:
        return _fetch_url(cfg["url"])
    names = [named] if named else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        cached = _cached(repo, name)
        if cached is not None:
            return cached
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        _check_reachable(_hub_host())
        for name in names[:-1]:
            try:
                return Path(hf_hub_download(repo, name))
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(repo, names[-1]))
    except Exception as error:
        raise _unavailable(f"hf-hub:{repo}", error) from error


def _fetch_url(url: str) -> Path:
    import torch

    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    try:
        if not target.is_file():
            _check_reachable(urlsplit(url).hostname)
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=False)  # complete, or not there
        return target
    except Exception as error:
        raise _unavailable(url, error) from error


def fetch_config(repo: str) -> Path:
    """Return the ``open_clip_config.json`` of a hub repository."""
    cached = _cached(repo, _CONFIG)
    if cached is not None:
        return cached
    try:
        from huggingface_hub import hf_hub_download

        _check_reachable(_hub_host())
        return Path(hf_hub_download(repo, _CONFIG))
    except Exception as error:
        raise _unavailable(f"hf-hub:{repo}", error) from error


def _unavailable(what: str, error: Exception) -> WeightsUnavailableError:
    # The hub's client, urllib and ssl raise their own families; all mean the same to the user.
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    if isinstance(error, socket.gaierror):
        reason = "there is no network (the host's name does not resolve)"
    return WeightsUnavailableError(f"the weights {what!r} could not be fetched: {reason}. {ADVICE}")


def _cached(repo: str, name: str) -> Path | None:
    """Return a cached file: even for one, the hub's client retries for a minute when offline."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name)
    return Path(found) if isinstance(found, str) else None


def _check_reachable(host: str | None) -> None:
    """Fail at once where the host's name does not resolve; a proxy resolves names by itself."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("they are not in the cache, and HF_HUB_OFFLINE is set")
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if host and not proxied:
        socket.getaddrinfo(host, 443)


def check_hub() -> None:
    """Fail at once where the hub cannot be reached.

    Raises
    ------
    OSError
    """
    _check_reachable(_hub_host())


def _hub_host() -> str | None:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname
