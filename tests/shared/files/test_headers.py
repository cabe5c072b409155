"""File names in Content-Disposition, by the examples of the RFCs; and media types."""

import pytest

from tandem_shared.files.headers import disposition_names, media_type


@pytest.mark.parametrize(
    ("header", "names"),
    [
        # RFC 6266, 5
        ("Attachment; filename=example.html", ["example.html"]),
        ('INLINE; FILENAME= "an example.html"', ["an example.html"]),
        ("attachment; filename*= UTF-8''%e2%82%ac%20rates", ["€ rates"]),
        (
            "attachment; filename=\"EURO rates\"; filename*=utf-8''%e2%82%ac%20rates",
            ["€ rates", "EURO rates"],
        ),
        # RFC 8187, 3.2.3, under the name that matters here
        ("attachment; filename*=iso-8859-1'en'%A3%20rates", ["£ rates"]),
        ("attachment; filename*=UTF-8''%c2%a3%20and%20%e2%82%ac%20rates", ["£ and € rates"]),
        # RFC 2231, 4.1
        (
            "attachment; filename*0*=us-ascii'en'is%20; filename*1*=%2A%2Afun; filename*2=\"'s\"",
            ["is **fun's"],
        ),
        ('attachment; filename*0="a; b"; filename*1=".csv"; filename*3=x', ["a; b.csv"]),
        # the text is kept where its charset is unknown or does not fit
        ("attachment; filename*=klingon''a%20b; filename=c", ["c", "a b"]),
        ("attachment; filename*=UTF-8''%ff", ["\N{REPLACEMENT CHARACTER}"]),
        ("attachment; filename*=idna''abc", ["abc"]),
        ("attachment; filename*=iso-8859-12''abc", ["abc"]),
        ("attachment; filename*=abc", ["abc"]),
        # hostile
        ("attachment; filename*=UTF-8''a; filename*0=b", ["a", "b"]),
        (f"attachment; filename*{'9' * 5000}=x", []),
        ("attachment; filename*1=x", []),
        ("attachment; filename*00=x; filename*01=y", []),
        ('attachment; filename="unclosed', ["unclosed"]),
        ('attachment; filename="\\', []),
        ("filename=x", []),
        ('; ="";;; filename', []),
    ],
)
def test_the_names_of_a_content_disposition(header: str, names: list[str]) -> None:
    assert disposition_names(header) == names


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ("text/csv; charset=utf-8", "a.json", "text/csv; charset=utf-8"),
        (None, "a.json", "application/json"),
        (None, "dir.csv/a.tar.gz", "application/x-tar"),
        (None, "data:text/html,x", "application/octet-stream"),
        (None, "data:a/☃,x.csv", "text/csv"),
        (None, "http://[x.csv", "text/csv"),
        ("a/☃", "a.csv", "text/csv"),
        ("text/x\r\nSet-Cookie: a=b", None, "application/octet-stream"),
    ],
)
def test_a_media_type_fits_into_a_header(
    given: str | None, name: str | None, expected: str
) -> None:
    assert media_type(given, name) == expected
