from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsd import BadFile, MissingFile, Trial, read_design, trials


@given(
    values=st.lists(st.integers(0, 73_000), min_size=225, max_size=225),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_reads_back_what_was_written_and_counts_images_from_0(
    tmp_path: Path, values: list[int], newline: str
) -> None:
    path = tmp_path / "design.tsv"
    path.write_bytes(newline.join(map(str, values)).encode())
    design = read_design(path)
    assert design.dtype == np.int64
    assert design.tolist() == values
    assert trials(design) == [Trial(row, value - 1) for row, value in enumerate(values) if value]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n" * 226, "expected 225 rows, one for each volume but the last, found 226 rows"),
        ("0\n" * 224, "found 224 rows"),
        ("", "found 0 rows"),
        (
            "0\n" * 100 + "73001\n" + "0\n" * 124,
            "expected 0 or an image id from 1 to 73000, found 73001 in row 100",
        ),
        ("0\n" * 100 + "-1\n" + "0\n" * 124, "found -1 in row 100"),
        ("0\n" * 3 + "1.5\n" + "0\n" * 221, "expected one integer per row, found '1.5' in row 3"),
        ("0\n" * 3 + "\n" + "0\n" * 221, "found '' in row 3"),
        ("\x00\xff", "expected one integer per row"),
    ],
)
def test_says_what_is_wrong_and_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "design_session01_run01.tsv"
    path.write_text(text)
    with pytest.raises(BadFile) as caught:
        read_design(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_names_a_missing_design(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"nowhere\.tsv: expected the design of a run"):
        read_design(tmp_path / "nowhere.tsv")
