"""The unmodified azure-storage-blob client against the server: each part raises if anything is not as on Azure."""

import base64
import hashlib
import io
import os
import random
import urllib.error
import urllib.request
import ssl
from datetime import datetime, timedelta, timezone

from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import (
    AccessPolicy,
    AccountSasPermissions,
    BlobBlock,
    BlobClient,
    BlobSasPermissions,
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    ContentSettings,
    ResourceTypes,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)

URL, KEY = os.environ["ACCOUNT_URL"], os.environ["ACCOUNT_KEY"]
MIB = 1 << 20
rng = random.Random(3)
now = datetime.now(timezone.utc)
fast = {"retry_total": 0}
service = BlobServiceClient.from_connection_string(os.environ["CONNECTION_STRING"], **fast)
parts = 0


def part(function):
    global parts
    function()
    parts += 1
    print("passed:", function.__name__)


def refused(call, code, status=403):
    try:
        call()
    except HttpResponseError as error:
        assert (error.status_code, error.error_code) == (status, code), (error.status_code, error.error_code, error)
        return error
    raise AssertionError(f"not refused: {code}")


@part
def containers():
    for name in ["con", "logs-1", "logs-2"]:
        service.create_container(name, metadata={"purpose": name})
    try:
        service.create_container("con")
        raise AssertionError("made twice")
    except ResourceExistsError as error:
        assert error.error_code == "ContainerAlreadyExists"
    found = list(service.list_containers(name_starts_with="logs", include_metadata=True, results_per_page=1))
    assert [(c.name, c.metadata) for c in found] == [
        ("logs-1", {"purpose": "logs-1"}),
        ("logs-2", {"purpose": "logs-2"}),
    ], found
    client = service.get_container_client("logs-1")
    # Names that the client sorts otherwise than by their bytes when it signs them.
    client.set_container_metadata({"a_b": "1", "a1": "2"})
    assert client.get_container_properties().metadata == {"a_b": "1", "a1": "2"}
    client.delete_container()
    assert not client.exists()
    info = service.get_account_information()
    assert (info["sku_name"], info["account_kind"]) == ("Standard_LRS", "StorageV2"), info
    assert service.get_service_properties()["hour_metrics"].enabled is False


con = service.get_container_client("con")


@part
def small_block_blobs():
    blob = con.get_blob_client("dir/a b+c%2F~'()é日本.txt")
    settings = ContentSettings(content_type="text/x-test", cache_control="no-store", content_language="de",
                               content_encoding="identity", content_disposition="inline")
    blob.upload_blob(b"hello", metadata={"one": "1", "two": "zwei drei"}, content_settings=settings)
    properties = blob.get_blob_properties()
    assert (properties.size, properties.blob_type, properties.metadata) == (
        5, "BlockBlob", {"one": "1", "two": "zwei drei"}), properties
    told = properties.content_settings
    assert (told.content_type, told.cache_control, told.content_language, told.content_encoding,
            told.content_disposition) == ("text/x-test", "no-store", "de", "identity", "inline"), told
    assert bytes(told.content_md5) == hashlib.md5(b"hello").digest()
    assert blob.download_blob().readall() == b"hello"
    assert blob.download_blob(offset=1, length=3).readall() == b"ell"
    assert blob.download_blob(validate_content=True).readall() == b"hello"
    try:
        blob.upload_blob(b"again")
        raise AssertionError("overwritten")
    except ResourceExistsError as error:
        assert error.error_code == "BlobAlreadyExists"
    # The client sends all of it before it listens: the refusal must still arrive.
    refused(lambda: blob.upload_blob(bytes(30 * MIB)), "BlobAlreadyExists", 409)
    blob.upload_blob(b"", overwrite=True, validate_content=True)
    assert blob.download_blob().readall() == b""
    blob.set_blob_metadata({"three": "3"})
    blob.set_http_headers(ContentSettings(content_type="text/plain"))
    properties = blob.get_blob_properties()
    assert (properties.metadata, properties.content_settings.content_type) == ({"three": "3"}, "text/plain")


@part
def forty_mebibytes_in_blocks():
    data = rng.randbytes(40 * MIB + 12345)
    client = ContainerClient(URL, "con", credential={"account_name": "acct1", "account_key": KEY},
                             max_single_put_size=4 * MIB, max_block_size=4 * MIB, **fast)
    blob = client.get_blob_client("large")
    blob.upload_blob(io.BytesIO(data), max_concurrency=4, validate_content=True)
    assert blob.download_blob(max_concurrency=4).readall() == data
    for _ in range(20):
        at = rng.randrange(len(data))
        length = rng.choice([1, 100, 512 * 1024, 5 * MIB])
        assert blob.download_blob(offset=at, length=length).readall() == data[at:at + length]
    committed, uncommitted = blob.get_block_list("all")
    assert (len(committed), uncommitted) == (11, []), (len(committed), uncommitted)
    assert sum(block.size for block in committed) == len(data)


@part
def block_lists():
    blob = con.get_blob_client("list")
    name = lambda number: base64.b64encode(f"{number:08}".encode()).decode()
    for number in range(3):
        blob.stage_block(name(number), bytes([number]) * 1000)
    assert not blob.exists()
    assert [b.id for b in blob.get_block_list("uncommitted")[1]] == [name(n) for n in range(3)]
    blob.commit_block_list([BlobBlock(name(2)), BlobBlock(name(0))], metadata={"a": "b"})
    assert blob.download_blob().readall() == b"\2" * 1000 + b"\0" * 1000
    blob.stage_block(name(2), b"new")
    blob.commit_block_list([BlobBlock(name(0)), BlobBlock(name(2)), BlobBlock(name(0))])
    assert blob.download_blob().readall() == b"\0" * 1000 + b"new" + b"\0" * 1000
    assert blob.get_blob_properties().metadata == {}
    refused(lambda: blob.commit_block_list([BlobBlock(name(1))]), "InvalidBlockList", 400)
    assert blob.download_blob().readall()[1000:1003] == b"new", "a refused list changes nothing"


@part
def lists():
    for name in ["t/a", "t/b/1", "t/b/2", "t/c", "t/é", "u", "T"]:
        con.upload_blob(name, name.encode(), metadata={"name": "x"})
    names = [b.name for b in con.list_blobs(name_starts_with="t/", results_per_page=2)]
    assert names == ["t/a", "t/b/1", "t/b/2", "t/c", "t/é"], names
    walked = [(type(item).__name__, item.name)
              for item in con.walk_blobs(name_starts_with="t/", delimiter="/", results_per_page=1)]
    assert walked == [("BlobProperties", "t/a"), ("BlobPrefix", "t/b/"), ("BlobProperties", "t/c"),
                      ("BlobProperties", "t/é")], walked
    top = sorted(item.name for item in con.walk_blobs(delimiter="/"))  # of a page, the client puts prefixes first
    assert top == ["T", "dir/", "large", "list", "t/", "u"], top
    one = next(iter(con.list_blobs(name_starts_with="t/a", include=["metadata"])))
    assert (one.metadata, one.size, one.blob_type, one.content_settings.content_type) == (
        {"name": "x"}, 3, "BlockBlob", "application/octet-stream"), one
    assert one.etag == con.get_blob_client("t/a").get_blob_properties().etag.strip('"')


@part
def conditions():
    blob = con.get_blob_client("conditional")
    first = blob.upload_blob(b"1")["etag"]
    second = blob.upload_blob(b"2", overwrite=True, etag=first, match_condition=MatchConditions.IfNotModified)["etag"]
    assert first != second
    try:
        blob.upload_blob(b"3", overwrite=True, etag=first, match_condition=MatchConditions.IfNotModified)
        raise AssertionError("the condition was ignored")
    except ResourceModifiedError as error:
        assert error.error_code == "ConditionNotMet"
    refused(lambda: blob.download_blob(etag=second, match_condition=MatchConditions.IfModified),
            "ConditionNotMet", 304)
    refused(lambda: blob.download_blob(if_unmodified_since=now - timedelta(days=1)), "ConditionNotMet", 412)
    assert blob.download_blob(if_modified_since=now - timedelta(days=1)).readall() == b"2"


@part
def page_blobs():
    blob = con.get_blob_client("disk.vhd")
    size = 64 * MIB
    blob.create_page_blob(size)
    data = rng.randbytes(3 * MIB)
    first = blob.upload_page(data, offset=8 * MIB, length=len(data))
    second = blob.upload_page(b"\7" * 512, offset=size - 512, length=512, validate_content=True)
    assert first["etag"] != second["etag"]
    # What pages were written makes the blob another one, for lists and for conditions too.
    listed = next(iter(con.list_blobs(name_starts_with="disk.vhd")))
    told = blob.get_blob_properties()
    assert listed.etag == told.etag.strip('"') == second["etag"].strip('"'), (listed.etag, told.etag, second)
    assert listed.last_modified == told.last_modified, (listed.last_modified, told.last_modified)
    stale = {"etag": first["etag"], "match_condition": MatchConditions.IfNotModified}
    refused(lambda: blob.delete_blob(**stale), "ConditionNotMet", 412)
    refused(lambda: blob.create_page_blob(512, **stale), "ConditionNotMet", 412)
    refused(lambda: blob.set_blob_metadata({"a": "b"}, **stale), "ConditionNotMet", 412)
    blob.clear_page(offset=9 * MIB, length=MIB)
    expected = bytearray(size)
    expected[8 * MIB:11 * MIB] = data
    expected[9 * MIB:10 * MIB] = bytes(MIB)
    expected[size - 512:] = b"\7" * 512
    ranges = [(r["start"], r["end"]) for r in blob.get_page_ranges()[0]]
    assert ranges == [(8 * MIB, 9 * MIB - 1), (10 * MIB, 11 * MIB - 1), (size - 4096, size - 1)], ranges
    paged = [(r.start, r.end, r.cleared) for r in blob.list_page_ranges(results_per_page=1)]
    assert paged == [(start, end, False) for start, end in ranges], paged
    some = blob.get_page_ranges(offset=8 * MIB + 512, length=1024)[0]
    assert [(r["start"], r["end"]) for r in some] == [(8 * MIB + 512, 8 * MIB + 1535)], some
    assert blob.download_blob(max_concurrency=2).readall() == expected
    properties = blob.get_blob_properties()
    assert (properties.blob_type, properties.size, properties.page_blob_sequence_number) == ("PageBlob", size, 0)
    blob.set_sequence_number("update", 7)
    blob.upload_page(b"\1" * 512, offset=0, length=512, if_sequence_number_lte=7)
    refused(lambda: blob.upload_page(b"\1" * 512, offset=0, length=512, if_sequence_number_lt=7),
            "SequenceNumberConditionNotMet", 412)
    refused(lambda: blob.upload_page(b"\1" * 512, offset=size, length=512), "InvalidPageRange", 416)
    # A page blob of which only the data is sent, as a VHD is uploaded.
    con.upload_blob("sparse.vhd", io.BytesIO(bytes(8 * MIB) + b"\5" * 512), blob_type="PageBlob",
                    length=8 * MIB + 512)
    sparse = con.get_blob_client("sparse.vhd")
    assert sparse.download_blob().readall() == bytes(8 * MIB) + b"\5" * 512
    assert len(sparse.get_page_ranges()[0]) == 1


@part
def append_blobs():
    blob = con.get_blob_client("log")
    blob.create_append_blob(content_settings=ContentSettings(content_type="text/plain"))
    assert blob.append_block(b"one ")["blob_append_offset"] == "0"
    assert blob.append_block(b"two", appendpos_condition=4)["blob_append_offset"] == "4"
    refused(lambda: blob.append_block(b"x", appendpos_condition=4), "AppendPositionConditionNotMet", 412)
    con.upload_blob("log", b" three", blob_type="AppendBlob")
    assert blob.download_blob().readall() == b"one two three"
    assert blob.get_blob_properties().append_blob_committed_block_count == 3


def with_sas(token, blob="u", container="con"):
    return BlobClient(URL, container, blob, credential=token, **fast)


@part
def account_sas():
    def token(permission, types, **more):
        return generate_account_sas("acct1", KEY, resource_types=ResourceTypes(**types),
                                    permission=AccountSasPermissions(**permission),
                                    expiry=more.pop("expiry", now + timedelta(hours=1)), **more)
    everything = token({"read": True, "write": True, "list": True, "delete": True},
                       {"service": True, "container": True, "object": True}, protocol="https",
                       ip="127.0.0.1", start=now - timedelta(minutes=5))
    other = BlobServiceClient(URL, credential=everything, **fast)
    assert [c.name for c in other.list_containers()] == ["con", "logs-2"]
    other.create_container("by-sas").upload_blob("x", b"y")
    other.delete_container("by-sas")
    readonly = token({"read": True}, {"object": True})
    assert with_sas(readonly).download_blob().readall() == b"u"
    refused(lambda: with_sas(readonly).upload_blob(b"x", overwrite=True), "AuthorizationPermissionMismatch")
    refused(lambda: list(BlobServiceClient(URL, credential=readonly, **fast).list_containers()),
            "AuthorizationResourceTypeMismatch")
    late = token({"read": True}, {"object": True}, expiry=now - timedelta(seconds=5), start=now - timedelta(hours=1))
    error = refused(lambda: with_sas(late).download_blob(), "AuthenticationFailed")
    assert "Expiry" in error.message, error.message
    elsewhere = token({"read": True}, {"object": True}, ip="10.0.0.1-10.0.0.9")
    refused(lambda: with_sas(elsewhere).download_blob(), "AuthorizationSourceIPMismatch")


@part
def service_sas():
    def token(permission, blob="u", expiry=now + timedelta(hours=1), **more):
        return generate_blob_sas("acct1", "con", blob, account_key=KEY, permission=BlobSasPermissions(**permission),
                                 expiry=expiry, **more)
    readonly = token({"read": True}, content_type="text/overridden")
    download = with_sas(readonly).download_blob()
    assert download.readall() == b"u"
    assert download.properties.content_settings.content_type == "text/overridden"
    refused(lambda: with_sas(readonly).delete_blob(), "AuthorizationPermissionMismatch")
    refused(lambda: with_sas(readonly, blob="T").download_blob(), "AuthenticationFailed")
    error = refused(lambda: with_sas(readonly.replace("sp=r", "sp=rwd")).delete_blob(), "AuthenticationFailed")
    assert "Signature did not match" in error.message, error.message
    expired = token({"read": True}, expiry=now - timedelta(seconds=1))
    assert "Expiry" in refused(lambda: with_sas(expired).download_blob(), "AuthenticationFailed").message
    early = token({"read": True}, start=now + timedelta(minutes=30))
    assert "Start" in refused(lambda: with_sas(early).download_blob(), "AuthenticationFailed").message
    create = token({"create": True}, blob="made/by sas")
    with_sas(create, blob="made/by sas").upload_blob(b"made")
    refused(lambda: with_sas(create, blob="made/by sas").upload_blob(b"x", overwrite=True),
            "AuthorizationPermissionMismatch")
    assert con.get_blob_client("made/by sas").download_blob().readall() == b"made"
    whole = generate_container_sas("acct1", "con", account_key=KEY, expiry=now + timedelta(hours=1),
                                   permission=ContainerSasPermissions(read=True, list=True))
    client = ContainerClient(URL, "con", credential=whole, **fast)
    assert "u" in [b.name for b in client.list_blobs()]
    assert client.get_blob_client("T").download_blob().readall() == b"T"
    refused(client.delete_container, "AuthorizationPermissionMismatch")
    refused(lambda: list(ContainerClient(URL, "logs-2", credential=whole, **fast).list_blobs()),
            "AuthenticationFailed")


@part
def stored_policies():
    policy = AccessPolicy(permission=ContainerSasPermissions(read=True), expiry=now + timedelta(hours=1))
    con.set_container_access_policy({"reader": policy})
    stored = con.get_container_access_policy()["signed_identifiers"]
    assert [(s.id, s.access_policy.permission) for s in stored] == [("reader", "r")], stored
    token = generate_blob_sas("acct1", "con", "u", account_key=KEY, policy_id="reader")
    assert with_sas(token).download_blob().readall() == b"u"
    con.set_container_access_policy({})
    error = refused(lambda: with_sas(token).download_blob(), "AuthenticationFailed")
    assert "does not exist" in error.message, error.message


@part
def a_sas_url_needs_no_client():
    token = generate_blob_sas("acct1", "con", "u", account_key=KEY, permission="r", expiry=now + timedelta(hours=1))
    context = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
    with urllib.request.urlopen(f"{URL}/con/u?{token}", context=context) as answer:
        assert answer.read() == b"u"
    try:
        urllib.request.urlopen(f"{URL}/con/u", context=context)
        raise AssertionError("anonymous")
    except urllib.error.HTTPError as error:
        assert error.code == 401 and error.headers["x-ms-error-code"] == "NoAuthenticationInformation"


@part
def copies():
    copy = con.get_blob_client("copy")
    started = copy.start_copy_from_url(con.get_blob_client("large").url)
    assert started["copy_status"] == "success"
    # As scripts wait for copies to end.
    told = copy.get_blob_properties().copy
    size = con.get_blob_client("large").get_blob_properties().size
    assert (told.status, told.id, told.source, told.progress) == (
        "success", started["copy_id"], con.get_blob_client("large").url, f"{size}/{size}"), told
    assert told.completion_time is not None
    listed = next(iter(con.list_blobs(name_starts_with="copy", include=["copy"]))).copy
    assert (listed.status, listed.id, listed.completion_time) == (told.status, told.id, told.completion_time), listed
    assert next(iter(con.list_blobs(name_starts_with="copy"))).copy.status is None
    assert con.get_blob_client("large").get_blob_properties().copy.status is None
    signed = con.get_blob_client("signed-copy")
    sas = generate_blob_sas("acct1", "con", "u", account_key=KEY, permission="r", expiry=now + timedelta(hours=1))
    signed.start_copy_from_url(f"{con.get_blob_client('u').url}?{sas}")
    assert signed.get_blob_properties().copy.source == con.get_blob_client("u").url, "without the signature"
    signed.delete_blob()
    source = hashlib.sha256(con.get_blob_client("large").download_blob().readall()).digest()
    con.get_blob_client("large").delete_blob()
    assert hashlib.sha256(copy.download_blob().readall()).digest() == source
    copy.start_copy_from_url(con.get_blob_client("u").url)
    assert copy.download_blob().readall() == b"u"
    stranger = BlobServiceClient(URL, credential=generate_container_sas(
        "acct1", "logs-2", account_key=KEY, expiry=now + timedelta(hours=1),
        permission=ContainerSasPermissions(write=True)), **fast).get_blob_client("logs-2", "stolen")
    refused(lambda: stranger.start_copy_from_url(con.get_blob_client("u").url), "CannotVerifyCopySource")


@part
def deletion():
    blob = con.get_blob_client("u")
    blob.delete_blob()
    assert not blob.exists()
    try:
        blob.delete_blob()
        raise AssertionError("deleted twice")
    except ResourceNotFoundError as error:
        assert error.error_code == "BlobNotFound"
    con.delete_container()
    refused(lambda: con.upload_blob("x", b"y"), "ContainerNotFound", 404)
    assert [c.name for c in service.list_containers()] == ["logs-2"]


print(f"all {parts} parts passed")
