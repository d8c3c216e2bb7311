"""Errors that are worded for Python, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Collection

from clipretrieval.cli.arguments import option_of

__all__ = ["in_options"]

_PHRASES = (
    *((f"as in read_table(…, {role}='…')", f"with --{role}-column NAME") for role in ("image", "label")),
    *((f"as {role}= says", f"as --{role}-column says") for role in ("image", "label")),
    ("a greater max_loss, or a budget", "a greater --max-loss, or --budget"),
    ("budget=", "--budget "),
    ("int8=", "--int8"),
    ("call conformalize(X, y) with", "run clipretrieval conformalize with"),
    ("(partial_fit)", "(index --add)"),
    ("labels must all be of one type", "the labels must all be of one type"),  # which --labels may not be
    (", or pass an object that follows clipretrieval.heads.Head", ""),
    (", or pass a callable", ""),
    ("'dask', or a function; got", "'dask'; got"),
    ("pass read_tars([…]) of all tars, and single images apart", "this command takes single images"),
    ("None, or a clipretrieval.heads.Whitening", "or none"),
    ("forget(label=…)", "clipretrieval forget CLASSIFIER --label CLASS"),
    (
        "OnnxEncoder(path) and a file that StagedEncoder.export wrote",
        "--onnx FILE, a file that clipretrieval export wrote",
    ),
    ("pass it: RetrievalClassifier.load(path, OnnxEncoder(file))", "pass --onnx"),
    ("; or make it yourself and pass it: RetrievalClassifier.load(path, encoder, store=your_store)", ""),
    (
        "pass resume=True to keep them and add what is missing, overwrite=True to replace them, or another "
        "store, or another place for it. To use what it holds as it is: RetrievalClassifier.from_store",
        "clipretrieval index with --resume keeps them and adds what is missing; or pass another place, "
        "such as another path or table",
    ),
)
"""What is more than one argument, or is called otherwise."""
_SPELLED = {"templates": "template", "store_options": "store_option"}
_SAYS = "must|is|are|takes|names|needs|holds|cannot"
"""What may follow an argument at the beginning of a message."""


def in_options(message: str, arguments: Collection[str], own: Collection[str] = ()) -> str:
    """Write an error for Python, such as ``batch_size must be``, with the options that arguments are here.

    Parameters
    ----------
    message : str
    arguments : collection of str
        The names of all options as parameters: ``batch_size`` is ``--batch-size``.
    own : collection of str
        Those of the command that failed, which may take several of what a message is about one of.
    """
    for python, here in _PHRASES:
        message = message.replace(python, here)
    options = {name: option_of(_SPELLED.get(name, name)) for name in (*arguments, *_SPELLED)}
    options.update({name: f"{option_of(name)}s" for name in arguments if f"{name}s" in own})
    names = "|".join(sorted(options, key=len, reverse=True))

    def given(found: re.Match[str]) -> str:
        option, value = options[found["name"]], found["value"]
        if value in ("True", "False"):
            return option if value == "True" else f"--no-{option[2:]}"
        quoted = found["quoted"]
        return f"{option} {'none' if value == 'None' else value if quoted is None else quoted}"

    # Not within a word, a path, a name in quotes, or a call of something; nor in a tower's description.
    alone = r"(?<![\w'\"./-])"
    described = re.split(r"('\w+\([^']*\)')", message)
    described[::2] = [
        re.sub(
            rf"{alone}(?P<name>{names})=(?P<value>'(?P<quoted>[^']*)'|None|True|False|-?\d+(?:\.\d+)?)",
            given,
            part,
        )
        for part in described[::2]
    ]
    message = "".join(described)
    message = re.sub(rf"^(?P<name>{names})(?= (?:{_SAYS})\b)", lambda found: options[found["name"]], message)
    long = "|".join(sorted((name for name in options if "_" in name), key=len, reverse=True))
    return re.sub(rf"{alone}(?P<name>{long})(?![\w'\"./=-])", lambda found: options[found["name"]], message)
