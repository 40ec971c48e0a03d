import pytest
from document import apply_diff, blocks

TEXT = "a\n\nb\nc\n\nb\nd\n"


def test_a_diff_changes_the_lines_that_it_names_and_no_others():
    assert apply_diff("@@\n-a\n+A\n@@ here\n b\n-d\n+D\n+e\n", TEXT) == "A\n\nb\nc\n\nb\nD\ne\n"
    assert apply_diff(" a\n \n+x\n b\n c\n", TEXT) == "a\n\nx\nb\nc\n\nb\nd\n"
    assert apply_diff(" a\n\n-b\n c\n", TEXT) == "a\n\nc\n\nb\nd\n"  # an editor has cut the end of the empty line


@pytest.mark.parametrize(
    ("diff", "reason"),
    [
        (" b\n+x\n", "2, 5"),
        (" B\n+x\n", "lines \\[\\]"),
        ("-b\n d\n@@\n-a\n", "after line 7"),
        (" a\n", "one place"),
        ("+x\n", "one place"),
        ("+x\n@@\n", "one place"),
        ("", "one place"),
        ("x\n", "neither"),
        ("-a\n@@\n", "one place"),
        ("- a\n", "lines \\[\\]"),
        ("-c\n+C\n@@\n-C\n+x\n", "lines \\[\\]"),
    ],
)
def test_a_diff_that_fits_nowhere_or_in_several_places_is_refused(diff, reason):
    with pytest.raises(ValueError, match=reason):
        apply_diff(diff, TEXT)


def test_blocks_of_other_languages_are_left_out(tmp_path):
    (tmp_path / "page.md").write_text("x\n```diff\n-a\n+b\n```\n```python\nc\n```\n\n```diff\n+d\n```\n")
    assert blocks(tmp_path / "page.md", "diff") == ["-a\n+b\n", "+d\n"]
    assert blocks(tmp_path / "page.md", "python") == ["c\n"]
