"""params.yaml: what is accepted, and what a wrong value is told."""

from pathlib import Path

import pytest

from willis.errors import ParamsError
from willis.params import IngestParams, Params, TrainParams, load_params, parse_section


def test_a_typo_is_told_the_nearest_key() -> None:
    with pytest.raises(ParamsError, match=r"'epoch' is not a known key; did you mean 'epochs'"):
        parse_section(Params, {"train": {"epoch": 3}}, "params.yaml")


def test_a_value_out_of_range_is_told_with_rule_and_place() -> None:
    with pytest.raises(ParamsError, match=r"dropout is 1.5; .*less than or equal to 1.*params.yaml: dropout"):
        parse_section(TrainParams, {"dropout": 1.5}, "params.yaml")


def test_a_whole_number_may_arrive_as_a_float_as_kfp_sends_it() -> None:
    assert parse_section(TrainParams, {"epochs": 3.0}, "pipeline").epochs == 3


def test_a_fraction_is_no_whole_number() -> None:
    with pytest.raises(ParamsError, match="epochs is 3.5"):
        parse_section(TrainParams, {"epochs": 3.5}, "pipeline")


def test_nan_is_refused() -> None:
    with pytest.raises(ParamsError, match="learning_rate is nan"):
        parse_section(TrainParams, {"learning_rate": float("nan")}, "pipeline")


def test_split_shares_must_add_up_to_one() -> None:
    shares = {"train": 0.5, "validation": 0.1, "calibration": 0.1, "test": 0.1}
    with pytest.raises(ParamsError, match=r"add up to 0.8; they must add up to 1"):
        parse_section(IngestParams, {"splits": shares}, "params.yaml")


def test_scientific_notation_in_yaml_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("ingest:\n  adc_below_mm2_s: 620e-6\ntrain:\n  learning_rate: 1e-3\n")
    params = load_params(path)
    assert params.ingest.adc_below_mm2_s == pytest.approx(0.00062)
    assert params.train.learning_rate == pytest.approx(0.001)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="copy params.yaml"):
        load_params(tmp_path / "params.yaml")


def test_text_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("- train\n")
    with pytest.raises(ParamsError, match="holds list"):
        load_params(path)


def test_broken_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: {epochs: 3\n")
    with pytest.raises(ParamsError, match="is not YAML"):
        load_params(path)
