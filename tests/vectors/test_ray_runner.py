"""Shards encoded by Ray, started on this machine and bound to its loopback address."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from dying_encoder import Dying

from clipretrieval import ImageDecodeError, RetrievalClassifier, StoreUnavailableError
from clipretrieval.vectors import encode
from clipretrieval.vectors.ray_runner import _share

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Ray.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning:ray"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    """Ray with two workers, which find what lies beside the tests."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=2**27,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parent}"}},
    )
    yield
    ray.shutdown()


def test_every_shard_is_done_once_though_a_worker_is_killed(cluster, fitted, class_folder, tmp_path):
    """Ray begins it again, and the classifier answers as one of the files does."""
    encoder = Dying(str(tmp_path / "died"), 0)
    report = encode(class_folder / "train", tmp_path / "parts", encoder, shards=5, workers=2, runner="ray")
    assert (tmp_path / "died").exists()
    assert (report.images, [part.number for part in report.parts]) == (24, [1, 2, 3, 4, 5])
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 5
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "parts" / "*.parquet", encoder=encoder, k=3)
    asked, near = (each.kneighbors(class_folder / "test", 3) for each in (read, fitted))
    assert asked.ids.tolist() == near.ids.tolist()
    assert asked.distances.tolist() == near.distances.tolist()


def test_an_error_of_a_shard_is_its_own(cluster, encoder, tmp_path):
    """And not Ray's, which has its traceback in it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_text("hello")
    with pytest.raises(ImageDecodeError, match=r"bad\.png"):
        encode(tmp_path / "a", tmp_path / "parts", encoder, runner="ray", workers=2)


def test_a_task_fits_the_smallest_machine():
    """Or it would wait for ever: several machines' cores are no one machine's."""
    machines = [
        {"Alive": alive, "Resources": {"memory": 1.0, **cores}}
        for alive, cores in ((True, {"CPU": 8.0}), (True, {"CPU": 3.0}), (True, {}), (False, {"CPU": 1.0}))
    ]
    assert [_share(machines, workers) for workers in (1, 4, 5, 100)] == [3, 2, 2, 1]
    assert (_share([], 1), _share(machines[:1], 1)) == (1, 8)


def test_a_cluster_that_is_not_there_is_told_in_a_line(encoder, class_folder, tmp_path, monkeypatch):
    """Ray itself would try for minutes."""
    if ray.is_initialized():
        ray.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for address, shown in (
        (f"127.0.0.1:{port}", "127.0.0.1"),
        (f"ray://me:SECRET@127.0.0.1:{port}", r"ray://\*\*\*@127.0.0.1"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(StoreUnavailableError, match=rf"Ray at {shown}:{port} cannot be reached: [^\n]*$"):
            encode(class_folder / "train", tmp_path / "parts", encoder, runner="ray")
