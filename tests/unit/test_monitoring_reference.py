"""Which columns are watched and how, and what a bundle's reference holds."""

import numpy as np
import pandas as pd
import pytest

from willis.errors import ShapeError
from willis.monitoring.reference import (
    as_categories,
    as_numbers,
    categories_of,
    embedding_columns,
    group_of,
    sample_reference,
    watched_columns,
)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nihss", "table"),
        ("f_volume_ml", "facts"),
        ("f_load_mca", "facts"),
        ("r_laterality", "report"),
        ("grounding_score", "report"),
        ("has_text", "report"),
        ("p", "prediction"),
        ("patient", None),
        ("p_raw", None),
        ("mrs_90d", None),
        ("scanner", None),
        ("embedding_000", None),
        ("a_image", None),
    ],
)
def test_a_column_belongs_to_the_group_of_its_name(name: str, group: str | None) -> None:
    assert group_of(name) == group


def test_kinds_are_chosen_from_the_reference_alone() -> None:
    rng = np.random.default_rng(0)
    reference = pd.DataFrame(
        {
            "age": rng.normal(70, 10, 40),
            "diabetes": rng.choice([0.0, 1.0, np.nan], 40),
            "sex": rng.choice(["F", "M"], 40),
            "f_infarct_present": rng.choice(np.array([True, False, None], dtype=object), 40),
            "r_impression": [f"finding number {k}" for k in range(40)],
            "site": ["north"] * 40,
        }
    )
    kinds = {column.name: column.kind for column in watched_columns(reference)}
    assert kinds == {
        "age": "number",
        "diabetes": "category",
        "sex": "category",
        "f_infarct_present": "category",
    }


def test_the_log_and_the_training_table_may_write_one_value_differently() -> None:
    assert as_categories(pd.Series([True, 1, 1.0, np.float32(1)], dtype=object)).tolist() == ["1"] * 4
    assert as_categories(pd.Series([None, np.nan, float("inf"), "left"], dtype=object)).tolist() == [
        None,
        None,
        None,
        "left",
    ]


def test_what_is_no_finite_number_is_missing() -> None:
    found = as_numbers(pd.Series([1, "2.5", "x", None, float("inf"), True], dtype=object))
    np.testing.assert_array_equal(found, [1, 2.5, np.nan, np.nan, np.nan, 1])


def rows_of(count: int) -> tuple[pd.DataFrame, list[str], np.ndarray, np.ndarray]:
    table = pd.DataFrame(
        {
            "patient_id": [f"sub-{k}" for k in range(count)],
            "site": ["north"] * count,
            "text": ["Acute infarct."] * count,
            "poor_outcome": [1.0] * count,
            "age": np.arange(count, dtype=float),
            "f_volume_ml": np.arange(count, dtype=float),
        }
    )
    patients = [f"{(7 * k) % count:032x}" for k in range(count)]
    return table, patients, np.linspace(0, 1, count), np.arange(count * 3.0).reshape(count, 3)


def test_a_reference_holds_watched_columns_and_no_id_no_place_no_text_no_outcome() -> None:
    found = sample_reference(*rows_of(10), num_rows=100)
    names = ["patient", "age", "f_volume_ml", "p", "embedding_000", "embedding_001", "embedding_002"]
    assert list(found.columns) == names
    assert embedding_columns(found) == names[-3:]


def test_rows_keep_together_when_they_are_sampled() -> None:
    table, patients, p, embeddings = rows_of(10)
    found = sample_reference(table, patients, p, embeddings, num_rows=4)
    assert list(found["patient"]) == sorted(patients)[:4]
    for row in found.itertuples():
        source = patients.index(row.patient)
        assert (row.age, row.p, row.embedding_002) == (source, p[source], embeddings[source, 2])


def test_rows_that_do_not_fit_are_refused() -> None:
    table, patients, p, embeddings = rows_of(10)
    with pytest.raises(ShapeError, match=r"\(10, 10, 9, 10\)"):
        sample_reference(table, patients, p[:9], embeddings, num_rows=4)


def test_a_number_that_is_mostly_zero_is_compared_in_three_steps() -> None:
    loads = pd.Series([0.0] * 30 + [0.5, 1.5, 2.5, 40.0, np.nan])
    column = watched_columns(pd.DataFrame({"f_load_mca": loads}))[0]
    assert (column.kind, column.steps) == ("category", (0.0, 2.0))
    window = pd.Series([0, 1.9, 2.1, None], dtype=object)
    assert categories_of(column, window).tolist() == ["0", "up to 2", "above 2", None]


def test_a_measured_value_stays_a_number_however_few_there_are() -> None:
    assert watched_columns(pd.DataFrame({"f_dwi_ratio": [1.61, 1.75, 1.8, None]}))[0].kind == "number"
