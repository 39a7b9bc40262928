"""The order of examples."""

import numpy as np
import pytest

from nlhf_jax.data.batches import Examples


@pytest.fixture
def examples():
    numbers = np.arange(1, 11, dtype=np.int32)
    return Examples(
        {"inputs": np.stack([numbers, numbers], axis=1), "weight": numbers.astype(np.float32)},
        {"inputs": 2},
        {"inputs": [str(number) for number in numbers]},
    )


def numbers(batch) -> list[int]:
    return batch["inputs"][:, 0].tolist()


def test_a_batch_depends_on_seed_and_index_alone(examples):
    later = numbers(examples.batch(7, 4, seed=3))
    for index in (0, 7, 100, 7):
        again = numbers(examples.batch(index, 4, seed=3))
        assert (again == later) == (index == 7)
    assert numbers(examples.batch(7, 4, seed=4)) != later


def test_every_epoch_sees_every_example_once_in_another_order(examples):
    order = [n for index in range(10) for n in numbers(examples.batch(index, 4, seed=0))]
    epochs = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(1, 11)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_the_order_does_not_depend_on_the_batch_size(examples):
    one = [n for index in range(30) for n in numbers(examples.batch(index, 1, seed=5))]
    three = [n for index in range(10) for n in numbers(examples.batch(index, 3, seed=5))]
    thirty = numbers(examples.batch(0, 30, seed=5))  # more than an epoch at once
    assert one == three == thirty


def test_features_of_a_batch_belong_together(examples):
    batch = examples.batch(3, 8, seed=1)
    assert batch["inputs"].dtype == np.int32
    assert batch["weight"].dtype == np.float32
    assert numbers(batch) == batch["weight"].tolist()


def test_evaluation_sees_every_example_once_and_marks_what_fills_up(examples):
    found = list(examples.eval_batches(4))
    assert [len(batch["inputs"]) for batch in found] == [4, 4, 4]
    valid = np.concatenate([batch["valid"] for batch in found])
    assert valid.tolist() == [1.0] * 10 + [0.0] * 2
    seen = np.concatenate([batch["inputs"][:, 0] for batch in found])
    assert seen[valid == 1].tolist() == list(range(1, 11))


def test_a_batch_may_have_more_rows_than_examples(examples):
    found = list(examples.eval_batches(4, rows_of_batch=6))
    assert [len(batch["inputs"]) for batch in found] == [6, 6, 6]
    kept = [numbers(batch)[: int(batch["valid"].sum())] for batch in found]
    assert kept == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert all((np.diff(batch["valid"]) <= 0).all() for batch in found)


def test_examples_are_taken_from_all_over_the_file_and_keep_its_order(examples):
    drawn = [tuple(examples.take(3, seed).texts("inputs")) for seed in range(200)]
    assert all(len(set(one)) == 3 and list(one) == sorted(one, key=int) for one in drawn)
    counts = np.bincount([int(text) for one in drawn for text in one], minlength=11)[1:]
    # Each of the ten is among the three with 3 / 10: 60 times of 200, give or take 4 sigma of 6.5.
    assert np.all(np.abs(counts - 60) < 26)
    assert tuple(examples.take(3, 7).texts("inputs")) == drawn[7]


def test_what_is_taken_belongs_together_and_grows(examples):
    three, five = examples.take(3, seed=1), examples.take(5, seed=1)
    assert three.texts("inputs") == [str(n) for n in numbers(three.arrays)]
    assert three.arrays["weight"].tolist() == numbers(three.arrays)
    assert set(three.texts("inputs")) < set(five.texts("inputs"))
    assert three.truncated == examples.truncated


def test_taking_all_changes_nothing(examples):
    for rows in (10, 99):
        assert examples.take(rows, seed=5) is examples
