"""Files that no crash destroys."""

from sparsereg.files import replacing, write_atomically


def test_two_writers_of_one_file(tmp_path):
    """Neither sees the other's half; the one that ends last wins, and nothing else is left."""
    path = tmp_path / "report.csv"
    write_atomically(path, "old")
    with replacing(path) as first:
        first.write(b"fir")
        with replacing(path) as second:
            second.write(b"second")
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"second"
        first.write(b"st")
    assert path.read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["report.csv"]
