"""Shards encoded by Dask, started on this machine and bound to its loopback address."""

from __future__ import annotations

import socket
import traceback
from contextvars import ContextVar

import pytest
from dying_encoder import Dying

from clipretrieval import ImageDecodeError, RetrievalClassifier, StoreUnavailableError
from clipretrieval.vectors import encode

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as made,
        distributed.Client(made) as client,
    ):
        yield client


def test_every_shard_is_done_once_though_a_worker_is_killed(
    cluster, fitted, class_folder, tmp_path, monkeypatch
):
    """Dask begins it again, and the classifier answers as one of the files does."""
    encoder = Dying(str(tmp_path / "died"), 0)
    told = []

    def warn(message):
        told.append(message)
        cluster.cluster.scale(2)

    monkeypatch.setattr("clipretrieval.vectors.dask_runner.warn_caller", warn)
    report = encode(class_folder / "train", tmp_path / "parts", encoder, shards=5, workers=2, runner="dask")
    assert [message.partition(":")[0] for message in told] == ["the Dask cluster has no workers"]
    assert (tmp_path / "died").exists()
    assert (report.images, [part.number for part in report.parts]) == (24, [1, 2, 3, 4, 5])
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 5
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "parts" / "*.parquet", encoder=encoder, k=3)
    asked, near = (each.kneighbors(class_folder / "test", 3) for each in (read, fitted))
    assert asked.ids.tolist() == near.ids.tolist()
    assert asked.distances.tolist() == near.distances.tolist()


def test_an_error_of_a_shard_is_its_own(cluster, encoder, tmp_path):
    """And not Dask's."""
    cluster.cluster.scale(2)
    cluster.wait_for_workers(1)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_text("hello")
    with pytest.raises(ImageDecodeError, match=r"bad\.png"):
        encode(tmp_path / "a", tmp_path / "parts", encoder, runner="dask", workers=2)


def test_a_scheduler_that_is_not_there_is_told_in_a_line(encoder, class_folder, tmp_path, monkeypatch):
    """Within the deadline, and without the client that the program has."""
    monkeypatch.setattr("clipretrieval.vectors.dask_runner._DEADLINE_S", 0.3)
    monkeypatch.setattr(distributed.client, "_global_clients", {})  # the module's own is still there
    monkeypatch.setattr(distributed.client, "_current_client", ContextVar("none", default=None))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", f"tcp://127.0.0.1:{port}")
    with pytest.raises(
        StoreUnavailableError, match=rf"Dask at tcp://127.0.0.1:{port} cannot be reached: [^\n]*$"
    ):
        encode(class_folder / "train", tmp_path / "parts", encoder, runner="dask")
    assert not distributed.client._global_clients  # none is left that every later call would take
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://me:SECRET@host")
    with pytest.raises(StoreUnavailableError, match=r"Dask at tcp://\*\*\*@host cannot") as raised:
        encode(class_folder / "train", tmp_path / "parts", encoder, runner="dask")
    assert "SECRET" not in "".join(traceback.format_exception(raised.value))
