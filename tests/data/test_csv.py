"""Rows of .csv files, as published benchmarks come."""

import pytest

from stair_jax.data import sources


def write(folder, text):
    path = folder / "x.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_the_first_row_names_the_columns_and_the_others_count_from_one(tmp_path):
    path = write(tmp_path, 'id,text\n1,"a, ""b""\nc"\n\n2,\n')
    assert sources.read(path) == [
        (f"{path}:1", {"id": "1", "text": 'a, "b"\nc'}),
        (f"{path}:2", {"id": "2", "text": ""}),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfid,text\r\n1,a\xe2\x80\xa8b\r\n")
    assert sources.read(path) == [(f"{path}:1", {"id": "1", "text": "a\u2028b"})]


def test_a_field_may_be_longer_than_the_librarys_own_limit(tmp_path):
    long = "x" * 200_000
    assert sources.read(write(tmp_path, f"text\n{long}\n"))[0].row == {"text": long}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1\n", r"x\.csv:1: found 1 fields, expected one for each of \['a', 'b'\]"),
        ("a,b\n1,2\n1,2,3\n", r"x\.csv:2: found 3 fields"),
        ("a,a\n1,2\n", r"x\.csv: columns \['a', 'a'\]: found the same name twice"),
        ('a,b\n1,"2\n', r"x\.csv: line 2: not CSV \("),
        ("a,b\n", r"x\.csv: found no rows"),
        ("", r"x\.csv: found no rows"),
        (b"a\n\xff\n", r"x\.csv:2: byte 0xff in column 1 is not UTF-8"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        sources.read(write(tmp_path, text))
    assert "\n" not in str(error.value)
