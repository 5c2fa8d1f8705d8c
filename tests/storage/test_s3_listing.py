"""A page of S3's lists says what botocore reads in it."""

from __future__ import annotations

from typing import Any

import botocore.handlers
import botocore.session
import pytest
from botocore.parsers import create_parser

from asymvae.storage import filesystem
from asymvae.storage.s3_listing import _take_entries

ODD_NAMES = ("a b.tar", "a&b<c>.tar", "a+b%41.tar", "ä/日本.tar", 'quote".tar', " first.tar", "deep/er/x.tar")
ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified><ETag>&quot;{key}&amp;&quot;</ETag>"
    "<Size>12</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
HEAD = "<IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken>"
FOLDERS = "<CommonPrefixes><Prefix>x/</Prefix></CommonPrefixes><CommonPrefixes><Prefix>y/</Prefix></CommonPrefixes>"
TWO = ENTRY.format(key="one") + ENTRY.format(key="&#xFC; &amp; two")


def document(inner: str, attribute: str = "", root: str = "ListBucketResult") -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}{attribute}>{inner}</{root}>'.encode()


BODIES = {
    "entries": document(HEAD + TWO),
    "entries first": document(TWO + HEAD),
    "apart": document(ENTRY.format(key="one") + HEAD + ENTRY.format(key="two") + FOLDERS),
    "of a name space": document(HEAD + TWO, ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'),
    "of a name space with a prefix": document(
        "<s:IsTruncated>false</s:IsTruncated><s:Contents><s:Key>one</s:Key></s:Contents>", ' xmlns:s="any"', "s:List"
    ).replace(b"s:List", b"s:ListBucketResult"),
    "pretty": document((HEAD + TWO).replace("><", ">\n  <")),
    "empty fields": document(HEAD + "\n <Contents>\n <Key>one</Key>\n <ETag></ETag>\n <StorageClass/>\n</Contents>\n"),
    "no entry": document(HEAD + FOLDERS),
    "of the whole second": document(TWO.replace(".678", "")),
    "an error": document("<Code>SlowDown</Code><Message>wait</Message>", root="Error"),
}


def parse(body: bytes, *, ours: bool, status: int = 200) -> dict[str, Any]:
    """As aiobotocore's endpoint does it."""
    service = botocore.session.get_session().get_service_model("s3")
    answer = {"status_code": status, "headers": {}, "body": body}
    extra: dict[str, Any] = {}
    if ours:
        _take_entries(response_dict=answer, customized_response_dict=extra)
    parsed = create_parser("rest-xml").parse(answer, service.operation_model("ListObjectsV2").output_shape)
    return {**parsed, **extra}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_page_says_what_botocore_reads_in_it(body: bytes) -> None:
    assert parse(body, ours=True) == parse(body, ours=False)


def test_what_we_have_no_use_for_is_left_out() -> None:
    owner = "<Owner><ID>someone</ID><DisplayName>Key</DisplayName></Owner></Contents>"
    assert parse(document(TWO.replace("</Contents>", owner)), ours=True) == parse(document(TWO), ours=False)


@pytest.mark.parametrize(
    ("body", "status"),
    [(BODIES["entries"][:-30], 200), (b"", 200), (BODIES["an error"], 200), (BODIES["entries"], 500)],
)
def test_what_is_no_whole_listing_is_left_to_botocore(body: bytes, status: int) -> None:
    answer, extra = {"status_code": status, "headers": {}, "body": body}, dict[str, Any]()
    _take_entries(response_dict=answer, customized_response_dict=extra)
    assert (answer, extra) == ({"status_code": status, "headers": {}, "body": body}, {})


@pytest.fixture(params=["seaweedfs", "moto"])
def any_s3_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue({"seaweedfs": "s3_url", "moto": "moto_url"}[request.param]))


def test_a_listing_of_pages_is_that_of_another_client(any_s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, path = filesystem.resolve(any_s3_url)
    names = sorted([f"{number:04d}.tar" for number in range(1010)] + list(ODD_NAMES), key=str.encode)
    fs.pipe({f"{path}/{name}": name[:3].encode() for name in names})
    bucket, _, folder = path.partition("/")
    client = botocore.session.get_session().create_client("s3", endpoint_url=fs.s3.meta.endpoint_url)
    pages = [*client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/")]
    theirs = {
        entry["Key"].removeprefix(f"{folder}/"): (
            entry["Size"],
            entry["ETag"].strip('"'),
            entry["LastModified"].timestamp(),
        )
        for page in pages
        for entry in page["Contents"]
    }
    read: list[int] = []
    whole = botocore.handlers._looks_like_special_case_error

    def measured(status: int, body: bytes) -> Any:
        read.append(len(body))
        return whole(status, body)

    monkeypatch.setattr(botocore.handlers, "_looks_like_special_case_error", measured)
    ours = [*filesystem.iter_files(any_s3_url, recursive=True)]
    assert len(pages) == 2
    assert [name for name, _ in ours] == [*theirs]
    assert sorted(theirs, key=str.encode) == names
    assert [(file.size, file.etag, file.changed) for _, file in ours] == [*theirs.values()]
    assert len(read) == 2
    assert max(read) < 10_000, "botocore went through the entries, too"
    flat = [name for name, _ in filesystem.iter_files(any_s3_url)]
    assert flat == [name for name in theirs if "/" not in name]
    assert {entry["name"]: entry["size"] for entry in fs.ls(path, detail=True) if entry["type"] == "file"} == {
        f"{path}/{name}": theirs[name][0] for name in flat
    }
