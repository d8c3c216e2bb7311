"""``clipretrieval search``: a kept classifier's stored images, found by text."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from clipretrieval._util.text import json_line, readable
from clipretrieval.cli.arguments import AllowRemote, KeptArgument, TemplateOption
from clipretrieval.cli.console import quiet_libraries, say
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import closing_stores, load_to_ask, modules_to_ask

__all__ = ["search_command"]


def search_command(
    classifier: KeptArgument,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT…", help='What to look for, such as "a red cup".')
    ],
    k: Annotated[int, typer.Option("--k", metavar="N", help="Images to show for each text.")] = 10,
    template: TemplateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each text.")] = False,
    allow_remote: AllowRemote = False,
) -> None:
    """Show the stored images that lie nearest to a text, by CLIP's text tower."""
    from clipretrieval._util.checks import check_int

    check_int(k, "--k")
    with quiet_libraries():
        asked = modules_to_ask(classifier, exported=False)
    with quiet_libraries(), interruptible(*asked):
        from clipretrieval._util.labels import fitted_labels
        from clipretrieval.explanation import stored_sources
        from clipretrieval.text_search import PLAIN

        made: Any = load_to_ask(classifier, allow_remote)
        with closing_stores(made):
            near = made.search_text(texts, k, templates=template or PLAIN)
            last = made.exits_[-1] if hasattr(made, "exits_") else made
            sources = stored_sources(last.store_, near)
            index = last.retriever_.index
        for place, text in enumerate(texts):
            there = near.valid[place]
            labels = fitted_labels(near.labels[place, there].tolist(), index.classes.kind)
            columns = near.ids[place, there].tolist(), labels, (1 - near.distances[place, there]).tolist()
            found = [
                {"id": name, "path": sources.get(name), "label": label, "cosine": round(cosine, 6)}
                for name, label, cosine in zip(*columns, strict=True)
            ]
            if as_json:
                say(json_line({"text": text, "images": found}))
                continue
            named = [readable(text)] if len(texts) > 1 else []
            for each in found:
                path = readable(each["path"] or each["id"])
                say("\t".join([*named, path, readable(each["label"]), f"{each['cosine']:.3f}"]))
