"""Images that leave on the way: the same vectors, in their order, within bounds."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from clipretrieval import ImageDecodeError, InvalidInputError, StagedEncoder
from clipretrieval.encoding import early_exits
from clipretrieval.images import iter_images

STAGES = ("stem", "layer1", "layer2", "late")


@pytest.fixture(scope="module")
def pictures():
    """Two hundred small images of noise, of several shapes."""
    rng = np.random.default_rng(3)
    return [
        rng.integers(0, 256, (int(side), int(90 - side), 3), dtype=np.uint8)
        for side in rng.integers(20, 70, 200)
    ]


def encoder(model, batch_size=8, **options):
    return StagedEncoder(model, precision="fp32", batch_size=batch_size, **options)


class Exits:
    """Who stays at random, and a note of all vectors that were seen."""

    def __init__(self, seed, stay=0.5, count=10_000):
        self._goes_on = np.random.default_rng(seed).random((8, count)) < stay
        self.seen, self.threads, self.sizes = {}, set(), []

    def __call__(self, place, batch):
        self.threads.add(threading.get_ident())
        self.sizes.append(len(batch))
        (vectors,) = batch.vectors.values()
        for index, vector in zip(batch.indices, vectors, strict=True):
            assert (place, index) not in self.seen
            self.seen[place, index] = vector
        return self._goes_on[place, batch.indices]

    def expected(self, place, index, last):
        """Tell whether an image comes to an exit."""
        return place <= last and all(self._goes_on[before, index] for before in range(place))


def run(made, images, exits, stages=STAGES, **options):
    return list(made.stream_exits(images, stages=stages, stay_on=exits, **options))


@pytest.mark.parametrize(("count", "batch_size"), [(200, 64), (200, 7), (33, 1), (17, 16), (1, 8), (2, 8)])
@pytest.mark.parametrize("stay", [0.0, 0.3, 1.0])
def test_vectors_are_those_of_each_stage_alone_whoever_leaves(tiny_model, pictures, count, batch_size, stay):
    """At each exit, exactly the images that went on have come, with the same bits; the order is restored."""
    made, images, exits = encoder(tiny_model, batch_size), pictures[:count], Exits(count + batch_size, stay)
    labels = [f"label {number}" for number in range(count)]
    batches = list(made.stream_exits(iter(images), iter(labels), stages=STAGES, stay_on=exits))
    assert [index for batch in batches for index in batch.indices] == list(range(count))
    assert [label for batch in batches for label in batch.labels] == labels
    assert [name for batch in batches for name in batch.ids] == [each.id for each in iter_images(images)]
    assert all(batch.vectors == {} for batch in batches)
    alone = made.encode_stages(images, STAGES)
    expected = {
        (place, index): alone[stage][index]
        for place, stage in enumerate(STAGES)
        for index in range(count)
        if exits.expected(place, index, len(STAGES) - 1)
    }
    assert exits.seen.keys() == expected.keys()
    for where, vector in expected.items():
        np.testing.assert_array_equal(exits.seen[where], vector)
    assert exits.threads == {threading.get_ident()}


def test_batches_are_as_full_as_asked_for(tiny_model, pictures):
    """All but the last batch that is handed over have the size that the encoder was made with."""
    batches = run(encoder(tiny_model, 16), pictures, Exits(1))
    assert all(len(batch) >= 16 for batch in batches[:-1])
    assert sum(map(len, batches)) == 200


def test_pixels_can_be_the_first_exit_and_joined_stages_any(tiny_model, pictures):
    """Vectors of several stages in one are those that the encoder joins, and computed as deep as needed."""
    stages = ("pixel", "stem+layer1", "layer1+layer2+late")
    made, exits = encoder(tiny_model, pooling="mean+max"), Exits(5, 0.6)
    run(made, pictures[:50], exits, stages)
    alone = made.encode_stages(pictures[:50], stages)
    for place, stage in enumerate(stages):
        came = [index for index in range(50) if exits.expected(place, index, 2)]
        assert came
        np.testing.assert_array_equal([exits.seen[place, each] for each in came], alone[stage][came])


def test_the_same_source_is_packed_in_the_same_way(tiny_model, pictures):
    """Two passes ask of the same images together."""
    first, second = Exits(2), Exits(2)
    made = encoder(tiny_model, 8)
    run(made, pictures, first)
    run(made, pictures, second)
    assert first.sizes == second.sizes
    assert list(first.seen) == list(second.seen)


@pytest.mark.parametrize("few", [1, 4, 6])
def test_an_endless_source_is_read_only_a_little_ahead(tiny_model, monkeypatch, few):
    """Where few images stay and wait for others that never come, they go on without."""
    monkeypatch.setattr(early_exits, "MOST_UNFINISHED", 100)
    monkeypatch.setattr(early_exits, "DECIDED", 64)
    made, pulled = encoder(tiny_model, 4), itertools.count()

    def source():
        while next(pulled) < 2000:
            yield np.zeros((8, 8, 3), dtype=np.uint8)
        raise AssertionError("it is read to its end")

    def few_stay(place, batch):
        return np.array([index < few for index in batch.indices])

    stream = made.stream_exits(source(), stages=STAGES, stay_on=few_stay)
    taken = 0
    for batch in itertools.islice(stream, 20):
        taken += len(batch)
        assert next(pulled) <= taken + 100 + 4 * early_exits.DECIDED + 64
    stream.close()


def test_what_waits_at_all_exits_is_bounded(tiny_model, monkeypatch):
    """One image that stays behind at each exit does not keep the others from being handed over."""
    monkeypatch.setattr(early_exits, "MOST_UNFINISHED", 60)
    monkeypatch.setattr(early_exits, "DECIDED", 64)
    images = [np.full((8, 8, 3), number % 256, dtype=np.uint8) for number in range(600)]
    seen, waiting = 0, []

    def stragglers(place, batch):
        waiting.append(max(batch.indices) - seen)
        return np.array([index % 150 == 0 for index in batch.indices])

    for batch in encoder(tiny_model, 4).stream_exits(iter(images), stages=STAGES, stay_on=stragglers):
        seen += len(batch)
    assert seen == 600
    assert max(waiting) <= 60 + 4 * early_exits.DECIDED


def test_closing_early_leaves_no_thread(tiny_model, pictures):
    """When the consumer stops half-way, or is interrupted while it decides, the workers end."""
    before, made = threading.active_count(), encoder(tiny_model, 4)
    stream = made.stream_exits(pictures, stages=STAGES, stay_on=Exits(1))
    next(stream)
    stream.close()
    assert threading.active_count() == before

    def interrupted(place, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made, pictures, interrupted)
    assert threading.active_count() == before


def test_broken_images_are_skipped_or_named(tiny_model, tmp_path, pictures):
    """Skipped ones are listed with their places, and all others keep theirs."""
    paths = [tmp_path / f"{number:02}.png" for number in range(30)]
    for number, path in enumerate(paths):
        Image.fromarray(pictures[number]).save(path)
    broken = [0, 7, 8, 9, 10, 29]
    for number in broken:
        paths[number].write_bytes(b"nothing")
    made, exits, skipped = encoder(tiny_model, 4), Exits(9), []
    batches = run(made, paths, exits, on_error="skip", skipped=skipped)
    assert sorted(each.index for each in skipped) == broken
    rest = [number for number in range(30) if number not in broken]
    assert [index for batch in batches for index in batch.indices] == rest
    assert {index for place, index in exits.seen if place == 0} == set(rest)
    with pytest.raises(ImageDecodeError, match=r"00\.png"):
        run(made, paths, Exits(9))
    assert run(made, [paths[0]], Exits(9), on_error="skip") == []
    assert run(made, [], Exits(9)) == []


def test_ids_can_be_left_out(tiny_model, pictures):
    """Without content ids, the vectors are the same."""
    made, with_ids, without = encoder(tiny_model), Exits(4), Exits(4)
    run(made, pictures[:20], with_ids)
    run(made, pictures[:20], without, identify=False)
    assert with_ids.seen.keys() == without.seen.keys()
    for where, vector in with_ids.seen.items():
        np.testing.assert_array_equal(without.seen[where], vector)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("layer2", "layer1"), "the exit 'layer1' is not deeper than 'layer2'"),
        (("layer1", "stem+layer1"), "is not deeper than 'layer1'"),
        (("pixel",), "the last exit must run the encoder"),
        (("layer1", "nowhere"), "nowhere"),
        ((), "stages"),
    ],
)
def test_exits_go_from_shallow_to_deep(tiny_model, pictures, stages, message):
    """Stages out of order, twice, unknown or none are refused before anything is encoded."""
    with pytest.raises(InvalidInputError, match=message):
        encoder(tiny_model).stream_exits(pictures[:1], stages=stages, stay_on=Exits(1))


def test_who_decides_has_to_be_a_function(tiny_model, pictures):
    """Anything else is refused."""
    with pytest.raises(InvalidInputError, match="stay_on must be a function"):
        encoder(tiny_model).stream_exits(pictures[:1], stages=STAGES, stay_on=0.5)


@pytest.mark.parametrize("answer", [None, True, [True], [0, 1, 2], np.ones((3, 1), dtype=bool), "yes"])
def test_who_decides_has_to_answer_for_each_image(tiny_model, pictures, answer):
    """An answer that is no mask of all images is refused with what it was."""
    with pytest.raises(InvalidInputError, match=r"stay_on must return a mask of bool, shape \(3,\)"):
        run(encoder(tiny_model), pictures[:3], lambda place, batch: answer)


@pytest.mark.parametrize("count", [1, 3])
def test_raw_pixels_may_be_the_first_exit_of_few_images(tiny_model, pictures, count):
    """What fits into one batch is encoded without threads beside it."""
    asked = []

    def on(place, batch):
        asked.append((place, len(batch), batch.vectors["pixel" if place == 0 else "layer1"].shape[1]))
        return np.ones(len(batch), dtype=bool)

    made = encoder(tiny_model, 8)
    done = list(made.stream_exits(pictures[:count], stages=["pixel", "layer1"], stay_on=on))
    assert sum(map(len, done)) == count
    assert asked == [(0, count, 3072), (1, count, made.stages["layer1"].dim)]
