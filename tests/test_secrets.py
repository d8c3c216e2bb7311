"""Secrets among a classifier's options: printed, pickled and saved nowhere, and used all the same."""

from __future__ import annotations

import copy
import io
import json
import pickle
import pprint
import time
import traceback

import numpy as np
import pytest
from rich.console import Console
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from clipretrieval import InvalidInputError, RetrievalClassifier, errors
from clipretrieval._util.checks import shown
from clipretrieval._util.secrets import MaskedDict, is_secret, masked, masked_text, without_secrets
from clipretrieval.stores import MemoryStore, create_store, register_store
from clipretrieval.stores.registry import _registered

SECRET = "pcsk-SECRET-0123"  # noqa: S105  nobody's
OPTIONS = {
    "index": "animals",
    "api_key": SECRET,
    "headers": {"X-Custom": SECRET},
    "settings": [{"dbPassword": SECRET}],
    "conninfo": f"host=db password={SECRET}",
    "url": f"https://me:{SECRET}@example.com/x?token={SECRET}&page=2",
}


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "apiKey", "API_KEY", "apikey", "key", "x-api-key", "accessKeyId", "token", "auth_token"),
        *(
            "authToken",
            "password",
            "db_password",
            "dbPassword",
            "passwd",
            "passwrd",
            "pasword",
            "sslpassword",
            "pwd",
            "secret",
            "client_secret",
        ),
        *("credentials", "Authorization", "headers", "cookie", "dsn", "bearer"),
    ],
)
def test_names_of_secrets(name):
    """Names are recognised in any spelling, with any value but None and booleans."""
    assert is_secret(name, "x")
    assert not is_secret(name, None)
    assert not is_secret(name, True)


@pytest.mark.parametrize(
    "name",
    [
        *("index", "namespace", "host", "path", "metric", "collection", "timeout", "dim", "exact_up_to"),
        *("keyspace", "partition_key", "author", "tokenizer", "monkey", "compass", "passage", "client", 5),
    ],
)
def test_names_of_what_is_no_secret(name):
    """Names that only look alike are shown."""
    assert not is_secret(name, "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pw@host:80/x", "http://***@host:80/x"),
        ("http://me@x.org:pw@host", "http://***@host"),
        ("https://token@host", "https://***@host"),
        ("at https://host/x?token=abc&y=2", "at https://host/x?token=***&y=2"),
        ("{'api_key': 'a b', 'k': 3}", "{'api_key': '***', 'k': 3}"),
        ('{"authorization": "Bearer x"}', '{"authorization": "***"}'),
        ("Authorization: Bearer abc.def, more", "Authorization: ***, more"),
        ("PineconeStore('x', api_key='abc')", "PineconeStore('x', api_key='***')"),
        ("host=db password=pw user=me", "host=db password=*** user=me"),
        (r"host=db password = 'p w\'x' user=me", "host=db password=*** user=me"),
        (r"host=db password=;p\ w)\\ user=me", "host=db password=*** user=me"),
        ('password="pw user=me', "password=*** user=me"),
        ("az://box/a?se=1&sig=abc", "az://box/a?se=1&sig=***"),
        ("author: api_key=abc", "author: api_key=***"),
        ("host:8080 k=3, https://example.com/a@b", "host:8080 k=3, https://example.com/a@b"),
    ],
)
def test_texts_are_masked(text, expected):
    """Passwords of URLs and values of secret names are struck out of a text, and nothing else is."""
    assert masked_text(text) == expected


def test_long_texts_are_masked_at_once():
    """A text of a stranger's file takes no longer for being full of what begins an address."""
    started = time.process_time()
    for text in ("://x" * 100_000, "://a:b" * 100_000, "x" * 400_000, "://x/" * 100_000 + "@"):
        assert masked_text(text) == text
    assert time.process_time() - started < 5


def test_values_are_masked_and_saved_without(tmp_path):
    """What is printed has *** and what is saved lacks them, at any depth and in the same shape."""
    assert masked(OPTIONS) == {
        "index": "animals",
        "api_key": "***",
        "headers": "***",
        "settings": [{"dbPassword": "***"}],
        "conninfo": "host=db password=***",
        "url": "https://***@example.com/x?token=***&page=2",
    }
    assert without_secrets(OPTIONS) == {
        "index": "animals",
        "settings": [{}],
        "conninfo": "host=db ",
        "url": "https://example.com/x?page=2",
    }
    cyclic: dict[str, object] = {}
    cyclic["self"] = cyclic
    assert "***" in repr(masked(cyclic))
    assert SECRET not in shown(OPTIONS)
    assert SECRET not in shown([("api_key", "x"), {"api_key": SECRET}])


def printed(value):
    """All that different ways of printing make of a value."""
    page = io.StringIO()
    Console(file=page, width=500).print(value)
    return "".join([repr(value), str(value), f"{value}", pprint.pformat(value), page.getvalue()])


def test_a_classifier_shows_its_secrets_nowhere():
    """Neither its representations, its parameters, its page in a notebook nor a search show a secret."""
    classifier = RetrievalClassifier(store="pinecone", store_options=OPTIONS)
    search = GridSearchCV(make_pipeline(classifier), {})
    for each in (classifier, clone(classifier), search):
        assert "animals" in printed(each)
        assert SECRET not in printed(each)
        assert SECRET not in each._repr_html_()
        assert SECRET not in printed(each.get_params())
        assert SECRET.encode() not in pickle.dumps(each)
    assert classifier.get_params()["store_options"] == OPTIONS


def test_clones_and_copies_have_the_secrets():
    """What is fitted later needs them: clone, copy and set_params hand them on."""
    classifier = RetrievalClassifier(store="pinecone", store_options=OPTIONS)
    assert classifier.store_options is OPTIONS
    for each in (
        clone(classifier),
        clone(clone(classifier)),
        copy.copy(classifier),
        copy.deepcopy(classifier),
        RetrievalClassifier().set_params(**classifier.get_params()),
    ):
        assert each.store_options == OPTIONS
    unpickled = pickle.loads(pickle.dumps(classifier))
    assert unpickled.store_options == without_secrets(OPTIONS)
    assert type(unpickled.store_options) is MaskedDict


@pytest.mark.parametrize("kind", [each for each in vars(errors).values() if isinstance(each, type)])
def test_errors_never_show_the_password_of_a_url(kind):
    """Whatever an error of ours quotes, what is before the @ of a URL is masked, in pickles too."""
    if not issubclass(kind, errors.ClipRetrievalError):
        return
    error = kind(f"the host 'http://me:{SECRET}@example.com' is not there")
    assert str(error) == "the host 'http://***@example.com' is not there"
    assert SECRET not in repr(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


class Guarded(MemoryStore):
    """A store at a server of its own, which tells its place with all that opens it."""

    def __init__(self, metric="l2", url="", api_key=None, fail=False):
        super().__init__(metric)
        self._url, self._api_key = url, api_key
        if fail:
            raise InvalidInputError("it failed")

    def location(self):
        return {"metric": str(self.metric), "url": self._url, "api_key": self._api_key}


@pytest.fixture
def guarded():
    """The name of a registered store that takes secrets."""
    register_store("guarded", Guarded)
    yield "guarded"
    del _registered["guarded"]


def test_a_saved_classifier_has_no_secret(guarded, tmp_path):
    """Whatever a store tells of its place, passwords and keys do not reach classifier.json."""
    options = {"url": f"https://me:{SECRET}@example.com", "api_key": SECRET}
    classifier = RetrievalClassifier(store=guarded, store_options=options)
    classifier.fit(np.eye(3), [0, 1, 2]).save(tmp_path / "saved")
    assert classifier.store_._api_key == SECRET
    text = (tmp_path / "saved" / "classifier.json").read_text()
    assert SECRET not in text
    assert json.loads(text)["store"]["options"] == {"metric": "l2", "url": "https://example.com"}


def test_no_error_shows_a_secret(guarded):
    """Wrong options and failures of a store are told without secrets, with local variables too."""
    for wrong in ([OPTIONS], f"api_key={SECRET}", [("api_key", SECRET), {"token": SECRET}]):
        with pytest.raises(InvalidInputError, match="store_options must be a mapping") as caught:
            RetrievalClassifier(store=guarded, store_options=wrong).fit([[0.0]], [0])
        assert SECRET not in str(caught.value)
    failing = {"api_key": SECRET, "fail": True}
    calls = [
        lambda: RetrievalClassifier(store=guarded, store_options=OPTIONS).fit([[0.0]], [0]),
        lambda: RetrievalClassifier(store=guarded, store_options=failing).fit([[0.0]], [0]),
        lambda: create_store(guarded, **OPTIONS),
        lambda: RetrievalClassifier.from_store(guarded, store_options=OPTIONS),
        lambda: RetrievalClassifier.from_store(guarded, store_options=failing),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError) as caught:
            call()
        found = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        found.stack[:] = [frame for frame in found.stack if "/clipretrieval/" in frame.filename]
        assert SECRET not in "".join(found.format())
