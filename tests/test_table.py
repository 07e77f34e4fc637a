from helium_mlx.table import Table

TABLE = Table("a|b", [("size", "MB"), ("rate", "")], [["<x>\n|y", "1", "2"], ["z", "3", "4"]])


def test_plain_text_has_names_over_units() -> None:
    assert TABLE.plain() == [
        "               size        rate",
        "a|b              MB",
        r"<x>\n|y           1           2",
        "z                 3           4",
    ]


def test_a_name_cannot_break_markdown() -> None:
    assert TABLE.markdown() == [
        r"| a\|b     | size, MB | rate |",
        "|----------|---------:|-----:|",
        r"| <x>\n\|y |        1 |    2 |",
        "| z        |        3 |    4 |",
    ]


def test_html_is_escaped() -> None:
    html = TABLE.html("<script>")
    assert "<caption>&lt;script&gt;</caption>" in html
    assert "<th>size, MB</th>" in html
    assert r"<td>&lt;x&gt;\n|y</td><td>1</td>" in html
    assert "<x>" not in html


def test_a_long_label_keeps_its_end() -> None:
    table = Table("file", [("figure", "")] * 5, [["a/" * 60 + "end", *"12345"]])
    assert {len(line) for line in table.lines()} == {80}
    assert table.lines()[0].startswith("…")
    assert "/end " in table.lines()[0]


def test_columns_may_be_as_narrow_as_what_stands_in_them() -> None:
    table = Table("file", [("size", "MB"), ("rate", "")], [["a", "123456", "2"]], narrowest=6)
    assert table.plain() == ["       size  rate", "file     MB", "a    123456     2"]
