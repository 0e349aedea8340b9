"""The pictures of a study that a reader sees."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from willis.errors import ReportError
from willis.imaging.lesion import Facts, Load
from willis.imaging.shards import encode
from willis.params import ReportParams
from willis.reports.prompt import MEASURED, facts_text, instruction, messages, prompt_hash, prompt_parts
from willis.reports.slices import Picture, choose_levels, level_mm, pictures
from willis.reports.writer import Study

SHAPE, SPACING = (88, 104, 40), (2.0, 2.0, 4.0)


def a_study(first: int = 3, last: int = 38, lesion: tuple[int, ...] = ()) -> Study:
    """Make a block of brain from level `first` to before `last`; a lesion on the patient's left."""
    brain = np.zeros(SHAPE, bool)
    brain[20:68, 20:84, first:last] = True
    dwi, adc = np.zeros(SHAPE, np.float32), np.full(SHAPE, 0.8, np.float32)
    for level in lesion:
        dwi[24:34, 30:40, level], adc[24:34, 30:40, level] = 6.0, 0.4
    volume = np.stack([encode(dwi, brain, "dwi"), encode(adc, brain, "adc"), encode(0 * dwi, brain, "flair")])
    return Study(volume, ("dwi", "adc", "flair"), (True, True, True), None, SPACING, Facts())


def shown(
    study: Study, layout: str = "composite", num_slices: int = 20, panel_px: int = 112
) -> tuple[Picture, ...]:
    """Lay out a study without looking for the lesion."""
    return pictures(
        study,
        layout=layout,
        num_slices=num_slices,
        panel_px=panel_px,
        through_lesion=False,  # type: ignore[arg-type]
    )


def test_levels_lie_evenly_over_the_brain_and_not_outside_it() -> None:
    assert choose_levels(a_study(3, 38), 20, through_lesion=False) == tuple(range(3, 38, 2))


def test_a_choice_without_facts_is_the_same_with_and_without_a_lesion() -> None:
    well, ill = a_study(), a_study(lesion=(7, 8, 9))
    assert choose_levels(well, 6, through_lesion=False) == choose_levels(ill, 6, through_lesion=False)


def test_a_choice_with_facts_follows_the_restricted_diffusion_with_half_of_its_levels() -> None:
    chosen = choose_levels(a_study(lesion=(7, 8, 9)), 6, through_lesion=True)
    assert {7, 8, 9} <= set(chosen)
    assert len(chosen) <= 6
    assert max(chosen) > 25


def test_a_study_of_three_levels_shows_all_three() -> None:
    assert choose_levels(a_study(10, 13), 20, through_lesion=False) == (10, 11, 12)


@pytest.mark.parametrize("num_slices", [1, 2, 5, 64])
def test_never_more_levels_than_asked_for(num_slices: int) -> None:
    for lesion in ((), (7, 8, 9)):
        chosen = choose_levels(a_study(lesion=lesion), num_slices, through_lesion=bool(lesion))
        assert 1 <= len(chosen) <= num_slices


def test_the_patients_left_is_on_the_right_of_the_picture_and_the_front_at_the_top() -> None:
    study = a_study(8, 9, lesion=(8,))
    (picture,) = shown(study)
    rows, columns = np.nonzero(picture.pixels[..., 0] > 150)
    # x 24..33 of 88 is the patient's left; y 30..39 of 104 is behind the middle
    assert columns.min() == 12 + 87 - 33
    assert columns.max() == 12 + 87 - 24
    assert rows.min() == 4 + 103 - 39
    assert rows.max() == 4 + 103 - 30


def test_windows_are_those_of_the_table() -> None:
    study = a_study(8, 9, lesion=(8,))
    (picture,) = shown(study)
    lesion = picture.pixels[4 + 103 - 35, 12 + 87 - 30].astype(int)
    # DWI 6 of -2..8, ADC 0.4 of 0..1.6, FLAIR 0 of -4..8
    assert abs(lesion - [0.8 * 255, 0.25 * 255, 255 / 3]).max() <= 2


def test_heights_are_those_of_mni_space() -> None:
    # 40 levels of 4 mm around z = 4 mm
    assert level_mm(a_study(), 0) == -74.0
    assert shown(a_study(8, 9))[0].label == "axial, z -42 mm, DWI/ADC/FLAIR"


def test_panels_stand_side_by_side_in_grey_and_leave_out_what_was_not_acquired() -> None:
    study = replace(a_study(8, 9), sequence_present=(True, False, True))
    (picture,) = shown(study, "panels", panel_px=224)
    assert picture.pixels.shape == (224, 448, 3)
    assert (picture.pixels[..., 0] == picture.pixels[..., 2]).all()
    assert picture.label.endswith("DWI | FLAIR")


def test_a_lesion_mask_is_never_shown() -> None:
    mask = np.full(SHAPE, 255, np.uint8)
    study = Study(mask[None], ("lesion",), (True,), None, SPACING, Facts())
    with pytest.raises(ReportError, match="shows nothing"):
        shown(study)


def test_planes_are_shown_under_their_names_and_empty_ones_are_not() -> None:
    planes = np.zeros((3, 96, 96), np.uint8)
    planes[0], planes[2] = 100, 200
    mask = np.full((1, *SHAPE), 255, np.uint8)
    study = Study(mask, ("lesion",), (True,), planes, SPACING, Facts())
    made = shown(study)
    assert [picture.label for picture in made] == ["axial plane, FLAIR", "coronal plane, FLAIR"]
    assert made[0].pixels[50, 50].tolist() == [0, 0, 100]


def test_planes_are_turned_to_radiological_convention_but_the_sagittal_one_stays() -> None:
    """They are stored with the patient's left on the left (docs/ingest.md)."""
    planes = np.zeros((3, 96, 96), np.uint8)
    planes[:, 48, 10] = 250
    study = Study(np.full((1, *SHAPE), 255, np.uint8), ("lesion",), (True,), planes, SPACING, Facts())
    made = shown(study)
    assert [int(np.argwhere(p.pixels[..., 2])[0, 1]) for p in made] == [8 + 85, 8 + 10, 8 + 85]
    assert [picture.sides for picture in made] == [("R", "L"), ("P", "A"), ("R", "L")]


def test_all_zero_volumes_are_refused_with_a_reason() -> None:
    study = replace(a_study(), volume=np.zeros((3, *SHAPE), np.uint8))
    with pytest.raises(ReportError, match="no DWI, ADC or FLAIR voxel above 0"):
        shown(study)


def test_a_finer_grid_shows_the_same_millimetres() -> None:
    coarse = a_study(8, 9, lesion=(8,))
    fine = replace(
        coarse,
        volume=coarse.volume.repeat(2, axis=1).repeat(2, axis=2),
        spacing_mm=(1.0, 1.0, 4.0),
    )
    (small,), (large,) = shown(coarse), shown(fine)
    assert small.pixels.shape == large.pixels.shape
    assert np.abs(small.pixels.astype(int) - large.pixels).mean() < 3


def test_a_chat_holds_a_label_before_each_picture_then_the_facts_then_the_request() -> None:
    facts = Facts(infarct_present=True, volume_ml=3.04, laterality="left", num_lesions=1, territory="mca")
    study = replace(a_study(8, 10), facts=facts)
    system, user = messages(study, ReportParams(facts_in_prompt=True))
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image_url"] * 2 + ["text", "text"]
    assert user["content"][-2]["text"].startswith(MEASURED)
    assert '"volume_ml":3.0' in user["content"][-2]["text"]
    url = user["content"][1]["image_url"]["url"]
    picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert picture.size == (112, 112)
    assert "never guess" in system["content"]


def test_without_facts_nothing_measured_is_told() -> None:
    facts = Facts(infarct_present=True, volume_ml=3.04, laterality="left")
    parts = list(prompt_parts(replace(a_study(8, 10), facts=facts), ReportParams(facts_in_prompt=False)))
    assert not any(isinstance(part, str) and ("ml" in part or "left" in part) for part in parts)


def test_unknown_facts_are_not_told() -> None:
    assert facts_text(Facts(loads=(Load(region="aca_left", volume_ml=None),))) == ""


def test_told_facts_are_those_measured() -> None:
    facts = Facts(
        infarct_present=True, volume_ml=12.44, num_lesions=2, laterality="right", territory="pca",
        adc_lesion_mm2_s=523.4e-6, dwi_flair_mismatch=False,
    )  # fmt: skip
    told = json.loads(facts_text(facts))
    assert told["volume_ml"] == 12.4
    assert told["adc_10-6_mm2_s"] == 523
    assert told["laterality"] == "right"
    assert told["dwi_flair_mismatch"] == "no"


def test_a_prompt_is_another_when_words_pictures_or_facts_are_others() -> None:
    base = ReportParams()
    others = ({"num_slices": 5}, {"layout": "panels"}, {"facts_in_prompt": False}, {"max_words": 30})
    hashes = {prompt_hash(base), *(prompt_hash(base.model_copy(update=change)) for change in others)}
    assert len(hashes) == 1 + len(others)


def test_the_instruction_forbids_what_a_report_must_not_say() -> None:
    words = instruction(ReportParams())
    for forbidden in ("severity scores", "prognosis", "outcome", "treatment"):
        assert forbidden in words
