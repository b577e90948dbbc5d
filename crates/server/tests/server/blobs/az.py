"""The unmodified azure-cli against the server: `az storage container …` and `az storage blob …` by key and by SAS.

`az` runs inside this process, because starting it anew takes a second each time."""

import hashlib
import io
import json
import os
import random
import sys
import tempfile

FOLDER = tempfile.mkdtemp(dir=os.environ["FOLDER"])
os.environ["AZURE_CONFIG_DIR"] = os.path.join(FOLDER, "config")
os.environ["AZURE_CORE_COLLECT_TELEMETRY"] = "false"
os.environ["AZURE_CORE_ONLY_SHOW_ERRORS"] = "true"
os.environ["AZURE_CORE_INSTANCE_DISCOVERY"] = "false"

from azure.cli.core import get_default_cli  # noqa: E402

URL, KEY = os.environ["ACCOUNT_URL"], os.environ["ACCOUNT_KEY"]
BY_STRING = ["--connection-string", os.environ["CONNECTION_STRING"]]
BY_KEY = ["--account-name", "acct1", "--account-key", KEY, "--blob-endpoint", URL]
parts = 0


def az(*args):
    out = io.StringIO()
    code = get_default_cli().invoke([*args, "-o", "json"], out_file=out)
    assert code == 0, (code, args[:4], out.getvalue())
    return json.loads(out.getvalue() or "null")


def part(function):
    global parts
    function()
    parts += 1
    print("passed:", function.__name__)
    sys.stdout.flush()


def file(name, data=None):
    path = os.path.join(FOLDER, name)
    if data is not None:
        with open(path, "wb") as target:
            target.write(data)
    return path


DATA = random.Random(4).randbytes(9 << 20)


@part
def containers():
    assert az("storage", "container", "create", "-n", "con", *BY_STRING) == {"created": True}
    assert az("storage", "container", "create", "-n", "con", *BY_KEY) == {"created": False}
    az("storage", "container", "create", "-n", "gone", *BY_KEY)
    assert [c["name"] for c in az("storage", "container", "list", *BY_STRING)] == ["con", "gone"]
    assert az("storage", "container", "delete", "-n", "gone", *BY_KEY) == {"deleted": True}
    assert az("storage", "container", "exists", "-n", "gone", *BY_STRING) == {"exists": False}


@part
def blobs_by_key():
    for how, name in [(BY_STRING, "dir/one.bin"), (BY_KEY, "dir/two.bin")]:
        az("storage", "blob", "upload", "-c", "con", "-n", name, "-f", file("up.bin", DATA), "--no-progress",
           "--metadata", "a=b", *how)
    az("storage", "blob", "download", "-c", "con", "-n", "dir/one.bin", "-f", file("down.bin"), "--no-progress",
       *BY_STRING)
    with open(file("down.bin"), "rb") as down:
        assert hashlib.sha256(down.read()).digest() == hashlib.sha256(DATA).digest()
    shown = az("storage", "blob", "show", "-c", "con", "-n", "dir/two.bin", *BY_STRING)
    assert (shown["properties"]["contentLength"], shown["metadata"]) == (len(DATA), {"a": "b"}), shown
    listed = az("storage", "blob", "list", "-c", "con", "--prefix", "dir/", *BY_STRING)
    assert [b["name"] for b in listed] == ["dir/one.bin", "dir/two.bin"], listed
    az("storage", "blob", "delete", "-c", "con", "-n", "dir/two.bin", *BY_KEY)
    assert az("storage", "blob", "exists", "-c", "con", "-n", "dir/two.bin", *BY_KEY) == {"exists": False}


@part
def page_blobs():
    disk = bytes(4 << 20) + DATA[:1 << 20] + b"\1" * 512
    az("storage", "blob", "upload", "-c", "con", "-n", "disk.vhd", "-f", file("disk.vhd", disk), "--type", "page",
       "--no-progress", *BY_STRING)
    shown = az("storage", "blob", "show", "-c", "con", "-n", "disk.vhd", *BY_STRING)
    assert shown["properties"]["blobType"] == "PageBlob", shown
    az("storage", "blob", "download", "-c", "con", "-n", "disk.vhd", "-f", file("disk2.vhd"), "--no-progress",
       *BY_STRING)
    with open(file("disk2.vhd"), "rb") as down:
        assert down.read() == disk


@part
def by_account_sas():
    token = az("storage", "account", "generate-sas", "--services", "b", "--resource-types", "sco", "--permissions",
               "rwdlc", "--expiry", "2099-01-01T00:00Z", "--https-only", "--account-name", "acct1", "--account-key",
               KEY)
    sas = ["--sas-token", token, "--blob-endpoint", URL]
    az("storage", "container", "create", "-n", "sas", *sas)
    az("storage", "blob", "upload", "-c", "sas", "-n", "x", "--data", "text", "--no-progress", *sas)
    assert [b["name"] for b in az("storage", "blob", "list", "-c", "sas", *sas)] == ["x"]
    az("storage", "blob", "delete", "-c", "sas", "-n", "x", *sas)
    assert az("storage", "blob", "list", "-c", "sas", *sas) == []


@part
def by_service_sas():
    token = az("storage", "blob", "generate-sas", "-c", "con", "-n", "dir/one.bin", "--permissions", "r", "--expiry",
               "2099-01-01T00:00Z", "--account-name", "acct1", "--account-key", KEY)
    sas = ["--sas-token", token, "--blob-endpoint", URL]
    az("storage", "blob", "download", "-c", "con", "-n", "dir/one.bin", "-f", file("sas.bin"), "--no-progress", *sas)
    with open(file("sas.bin"), "rb") as down:
        assert down.read() == DATA


@part
def accounts():
    az("cloud", "register", "-n", "tintype", "--endpoint-resource-manager", os.environ["SERVER_URL"])
    az("cloud", "set", "-n", "tintype")
    az("login", "--service-principal", "-u", os.environ["CLIENT_ID"], "-p", os.environ["CLIENT_SECRET"], "--tenant",
       os.environ["TENANT"])
    assert az("storage", "account", "check-name", "-n", "made1")["nameAvailable"] is True
    made = az("storage", "account", "create", "-n", "made1", "-g", "Rg", "-l", "eastus", "--sku", "Standard_LRS",
              "--kind", "StorageV2", "--tags", "a=b")
    assert (made["name"], made["provisioningState"], made["sku"]["name"], made["tags"]) == (
        "made1", "Succeeded", "Standard_LRS", {"a": "b"}), made
    shown = az("storage", "account", "show", "-n", "made1", "-g", "Rg")
    assert shown["primaryEndpoints"]["blob"] == os.environ["SERVER_URL"] + "/made1/", shown
    assert sorted(a["name"] for a in az("storage", "account", "list", "-g", "Rg")) == ["acct1", "made1"]
    keys = az("storage", "account", "keys", "list", "-n", "made1", "-g", "Rg")
    renewed = az("storage", "account", "keys", "renew", "-n", "made1", "-g", "Rg", "--key", "key1")
    assert [k["value"] == r["value"] for k, r in zip(keys, renewed)] == [False, True]
    string = az("storage", "account", "show-connection-string", "-n", "made1", "-g", "Rg")["connectionString"]
    az("storage", "container", "create", "-n", "con", "--connection-string", string)
    assert [c["name"] for c in az("storage", "container", "list", "--connection-string", string)] == ["con"]
    # With the login alone: the client asks for a token for storage.
    by_login = ["--auth-mode", "login", "--blob-endpoint", os.environ["SERVER_URL"] + "/made1"]
    az("storage", "blob", "upload", "-c", "con", "-n", "x", "--data", "text", "--no-progress", *by_login)
    assert [b["name"] for b in az("storage", "blob", "list", "-c", "con", *by_login)] == ["x"]
    az("storage", "account", "update", "-n", "made1", "-g", "Rg", "--https-only", "false", "--tags", "c=d")
    shown = az("storage", "account", "show", "-n", "made1", "-g", "Rg")
    assert (shown["enableHttpsTrafficOnly"], shown["tags"]) == (False, {"c": "d"}), shown
    az("storage", "account", "delete", "-n", "made1", "-g", "Rg", "--yes")
    assert [a["name"] for a in az("storage", "account", "list")] == ["acct1"]


print(f"all {parts} parts passed")
