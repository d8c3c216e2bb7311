"""Opening a saved classifier that somebody else sent: nothing is contacted, read or made without consent."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import threading
from contextlib import closing

import numpy as np
import pytest
from saved_files import rewrite

from clipretrieval import (
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    StoreUnavailableError,
    WeightsUnavailableError,
)
from clipretrieval.stores import ChromaStore, FaissStore, LocalFilesStore, MemoryStore, register_store
from clipretrieval.stores.registry import _registered

POINTS, LABELS = np.eye(4, dtype=np.float32), [0, 1, 0, 1]
KEY = "pcsk_environment_0123456789"


@pytest.fixture
def saved(tmp_path):
    """A folder with a classifier that was saved."""
    RetrievalClassifier().fit(POINTS, LABELS).save(tmp_path / "saved")
    return tmp_path / "saved"


class Listener:
    """A server on loopback that keeps what it is sent and answers with a redirection."""

    def __init__(self, answer=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"):
        self.received, self._answer = [], answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.received.append(connection.recv(65536))
                connection.sendall(self._answer)

    def close(self):
        self._socket.close()


@pytest.fixture
def listener():
    """A server that should hear nothing."""
    with closing(Listener()) as server:
        yield server


def everything_in(folder):
    """All files below a folder with their content."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def name_store(folder, name, **options):
    rewrite(folder / "classifier.json", store={"name": name, "options": options})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pinecone", {"index": "animals", "host": "http://127.0.0.1:{port}"}),
        ("pinecone", {"index": "animals"}),
        ("pinecone", {"index": "animals", "path": "store-inside"}),
        ("chroma", {"host": "127.0.0.1", "port": "{port}"}),
        ("chroma", {"host": "127.0.0.1", "port": "{port}", "path": "store-inside"}),
        ("chroma", {"path": "store-inside"}),
        ("chroma", {"path": "{outside}"}),
        ("faiss", {"path": "{outside}"}),
        ("faiss", {"path": "store-inside", "host": "127.0.0.1"}),
        ("faiss", {}),
        ("memory", {}),
    ],
)
def test_without_consent_nothing_is_contacted_read_or_made(
    saved, tmp_path, listener, monkeypatch, name, options
):
    """Whatever a file names, a refusal says what it asks for and what to do, and leaves no trace."""
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    for folder in (tmp_path / "outside", saved / "store-inside"):
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    filled = {
        key: int(value.format(port=listener.port))
        if value == "{port}"
        else value.format(port=listener.port, outside=tmp_path / "outside")
        for key, value in options.items()
    }
    name_store(saved, name, **filled)
    before = everything_in(tmp_path)
    with pytest.raises(
        InvalidInputError, match=rf"asks for the '{name}' store.*allow_remote=True.*store="
    ) as caught:
        RetrievalClassifier.load(saved)
    assert KEY not in str(caught.value)
    assert everything_in(tmp_path) == before
    assert listener.received == []


@pytest.mark.parametrize("answer", ["redirect", "empty"])
def test_with_consent_the_environments_key_goes_to_no_foreign_host(saved, monkeypatch, answer):
    """Even where it is allowed to connect, a host that the file names is not sent PINECONE_API_KEY."""
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    monkeypatch.setenv("PINECONE_ADDITIONAL_HEADERS", f'{{"X-Secret": "{KEY}"}}')
    with closing(Listener()) as server:
        name_store(saved, "pinecone", index="animals", host=f"http://127.0.0.1:{server.port}")
        with pytest.raises(InvalidInputError, match="PINECONE_API_KEY is sent to Pinecone's own hosts alone"):
            RetrievalClassifier.load(saved, allow_remote=True)
        assert server.received == []


def test_a_redirection_is_not_followed(monkeypatch):
    """A host that is trusted with a key cannot pass it on to another, nor are other secrets sent to it."""
    from clipretrieval.stores import PineconeStore

    monkeypatch.setenv("PINECONE_ADDITIONAL_HEADERS", '{"X-Secret": "header-secret"}')
    with closing(Listener()) as elsewhere:
        answer = (
            f"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:{elsewhere.port}/\r\nContent-Length: 0\r\n\r\n"
        )
        with closing(Listener(answer.encode())) as server:
            with pytest.raises(Exception, match="animals"):
                PineconeStore(
                    "animals", api_key="given-key", host=f"http://127.0.0.1:{server.port}", timeout=1
                )
            assert server.received
            assert all(b"given-key" in each and b"header-secret" not in each for each in server.received)
        assert elsewhere.received == []


@pytest.mark.parametrize("port", [True, False])
def test_chroma_is_contacted_with_consent_alone(saved, listener, monkeypatch, port):
    """With allow_remote=True the server is spoken to, without the environment's credentials."""
    monkeypatch.setenv("CHROMA_CLIENT_AUTH_PROVIDER", "chromadb.auth.token_authn.TokenAuthClientProvider")
    monkeypatch.setenv("CHROMA_CLIENT_AUTH_CREDENTIALS", KEY)
    name_store(saved, "chroma", host="127.0.0.1", port=listener.port)
    if not port:
        with pytest.raises(InvalidInputError, match="allow_remote"):
            RetrievalClassifier.load(saved)
        assert listener.received == []
        return
    with pytest.raises(Exception, match="Chroma"):
        RetrievalClassifier.load(saved, allow_remote=True)
    assert listener.received
    assert not any(KEY.encode() in each for each in listener.received)
    gc.collect()  # a connection that was left open would be told here


def test_a_faiss_folder_elsewhere_is_opened_as_it_is(tmp_path):
    """A store that is there is opened without consent and a new file; none is made where there is none."""
    fitted = RetrievalClassifier(store=FaissStore(tmp_path / "index")).fit(POINTS, LABELS)
    fitted.save(tmp_path / "saved")
    fitted.store_.close()
    before = everything_in(tmp_path)
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    assert loaded.predict(POINTS).tolist() == LABELS
    loaded.store_.close()
    assert everything_in(tmp_path) == before
    name_store(tmp_path / "saved", "faiss", path=str(tmp_path / "index"), metric="l2", index="HNSW32")
    before = everything_in(tmp_path)
    with pytest.raises(InvalidInputError, match="allow_remote"):
        RetrievalClassifier.load(tmp_path / "saved")
    assert everything_in(tmp_path) == before
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(StoreUnavailableError, match="not there any more"):
        RetrievalClassifier.load(tmp_path / "saved")
    assert not (tmp_path / "index").exists()


def test_a_chroma_folder_is_opened_where_it_has_the_collection(tmp_path):
    """A collection that is there opens without consent; another name or another program's makes nothing."""
    store = ChromaStore(tmp_path / "database")
    RetrievalClassifier(store=store).fit(POINTS, LABELS).save(tmp_path / "saved")
    store.close()
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    assert loaded.predict(POINTS).tolist() == LABELS
    loaded.store_.close()
    place = str(tmp_path / "database")
    before = everything_in(tmp_path / "database")
    for options in (
        {"path": place, "collection": "another"},
        {"path": place, "collection": ["clipretrieval"]},
        {"path": place, "client": "x"},
    ):
        name_store(tmp_path / "saved", "chroma", **options)
        with pytest.raises(InvalidInputError, match="allow_remote"):
            RetrievalClassifier.load(tmp_path / "saved")
    (tmp_path / "database" / "chroma.sqlite3").write_bytes(b"no database")
    name_store(tmp_path / "saved", "chroma", path=place)
    with pytest.raises(InvalidInputError, match="allow_remote"):
        RetrievalClassifier.load(tmp_path / "saved")
    assert set(everything_in(tmp_path / "database")) == set(before)


@pytest.mark.parametrize("model", ["hf-hub:org/name", "HF-HUB:org/name", "http://example.com/model"])
def test_a_model_from_a_hub_needs_consent(saved, model, monkeypatch):
    """A model that would be fetched from where the file says is refused before anything is asked for."""

    def connect(*_, **__):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", connect)
    encoder = {"class": "StagedEncoder", "config": {"model": model, "pretrained": None}}
    rewrite(saved / "classifier.json", encoder=encoder)
    with pytest.raises(InvalidInputError, match=r"asks for the model.*allow_remote=True"):
        RetrievalClassifier.load(saved)


def test_local_models_need_no_consent(tmp_path, tiny_model, class_folder):
    """A model's folder and the names of the catalogue open as before."""
    for place, encoder in enumerate((StagedEncoder(tiny_model, stage="mid"), StagedEncoder(stage="pixel"))):
        RetrievalClassifier(encoder).fit(class_folder / "train").save(tmp_path / str(place))
        assert RetrievalClassifier.load(tmp_path / str(place)).encoder.dim == encoder.dim


def test_a_copy_that_is_a_link_elsewhere_needs_consent(saved, tmp_path):
    """A store's folder that is a link out of the classifier's folder is not followed without being asked."""
    copy = next(path for path in saved.iterdir() if path.name.startswith("store-"))
    copy.rename(tmp_path / "elsewhere")
    copy.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="a link to"):
        RetrievalClassifier.load(saved)
    assert RetrievalClassifier.load(saved, allow_remote=True).predict(POINTS).tolist() == LABELS


class Noted(MemoryStore):
    """A store of somebody's package that tells when it is made."""

    made = 0

    def __init__(self, metric="l2", place=""):
        super().__init__(metric)
        type(self).made += 1


class NotedLocal(Noted):
    """One that says that it only reads local files."""

    @classmethod
    def exists_locally(cls, options):
        return options.get("place") == "here"


@pytest.mark.parametrize(
    ("kind", "place", "refused"),
    [(Noted, "here", True), (NotedLocal, "there", True), (NotedLocal, "here", False)],
)
def test_a_store_of_a_package_says_itself_whether_it_is_safe(saved, monkeypatch, kind, place, refused):
    """A store that does not say that it opens local files alone is made with consent alone."""
    assert isinstance(kind, LocalFilesStore) is (kind is NotedLocal)
    monkeypatch.setattr(kind, "made", 0)
    register_store("noted", kind)
    try:
        name_store(saved, "noted", place=place)
        with pytest.raises(InvalidInputError if refused else Exception):  # else it is empty
            RetrievalClassifier.load(saved)
        assert kind.made == (0 if refused else 1)
        with pytest.raises(Exception, match="manifest"):
            RetrievalClassifier.load(saved, allow_remote=True)
        assert kind.made == (1 if refused else 2)
    finally:
        del _registered["noted"]


def test_a_copy_of_another_packages_store_needs_consent(saved, monkeypatch):
    """What a class that is not the library's does to open a copy is up to it: it is asked for first."""
    RetrievalClassifier(store=MemoryStore()).fit(POINTS, LABELS).save(saved)
    register_store("noted", Noted)
    monkeypatch.setattr(Noted, "made", 0)
    try:
        copy = json.loads((saved / "classifier.json").read_text())["store"]
        rewrite(saved / "classifier.json", store={**copy, "name": "noted"})
        with pytest.raises(InvalidInputError, match=r"asks for the 'noted' store in store-.*allow_remote"):
            RetrievalClassifier.load(saved)
        assert Noted.made == 0
        assert RetrievalClassifier.load(saved, allow_remote=True).predict(POINTS).tolist() == LABELS
    finally:
        del _registered["noted"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_lock_of_a_chroma_folder_is_a_file(tmp_path, kind):
    """A link in its place, to what taking the lock might empty, and a pipe are refused."""
    store = ChromaStore(tmp_path / "database")
    RetrievalClassifier(store=store).fit(POINTS, LABELS).save(tmp_path / "saved")
    store.close()
    (tmp_path / "mine.txt").write_text("mine")
    lock = tmp_path / "database" / "clipretrieval.lock"
    lock.unlink()
    if kind == "link":
        lock.symlink_to(tmp_path / "mine.txt")
    else:
        os.mkfifo(lock)
    with pytest.raises(StoreUnavailableError, match=r"database cannot be locked.*not a regular file"):
        RetrievalClassifier.load(tmp_path / "saved")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["pipe", "zero", "large"])
def test_a_models_configuration_is_a_file(saved, tmp_path, kind):
    """Nothing is waited for where a model's configuration is a pipe, a device or a file of a tebibyte."""
    config = tmp_path / "model" / "open_clip_config.json"
    config.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(config)
    elif kind == "zero":
        config.symlink_to("/dev/zero")
    else:
        config.touch()
        os.truncate(config, 2**40)
    (config.parent / "open_clip_model.safetensors").touch()
    described = {
        "class": "StagedEncoder",
        "config": {"model": f"local-dir:{config.parent}", "pretrained": None},
    }
    rewrite(saved / "classifier.json", encoder=described)
    with pytest.raises(WeightsUnavailableError, match=r"not a regular file|1099511627776 bytes"):
        RetrievalClassifier.load(saved)


def test_a_store_that_the_caller_gives_needs_no_consent(saved):
    """With store= the description is not looked at."""
    store = MemoryStore()
    RetrievalClassifier(store=store).fit(POINTS, LABELS)
    name_store(saved, "pinecone", index="animals", host="http://127.0.0.1:9")
    assert RetrievalClassifier.load(saved, store=store).predict(POINTS).tolist() == LABELS
