"""What the local pipeline says when a step failed."""

from pathlib import Path

from pipelines.local import reason_in

TRACEBACK = """
      File "steps/promote.py", line 12, in promote
        raise BundleError("...")
    willis.errors.BundleError: bundle.json is damaged:
      created_at is 'never'; a time is needed
    \n
15:43:42.012 - ERROR - Task \x1b[96m'promote'\x1b[0m finished with status FAILURE
"""


def test_a_step_that_failed_on_purpose_is_told_by_its_own_words_all_of_them(tmp_path: Path) -> None:
    log = tmp_path / "pipeline.log"
    log.write_text(TRACEBACK)
    assert reason_in(log) == (
        "BundleError: bundle.json is damaged:\n      created_at is 'never'; a time is needed\n"
        f"(the whole log: {log})"
    )


def test_a_step_that_died_is_told_by_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "pipeline.log"
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    told = reason_in(log).splitlines()
    assert told[0] == f"the end of {log}:" and told[-1] == "line 99" and len(told) == 26
