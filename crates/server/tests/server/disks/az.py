"""The unmodified azure-cli against the server: `az disk` and `az snapshot`, with the page-blob client in between.

`az` runs inside this process, because starting it anew takes a second each time."""

import io
import json
import os
import subprocess

FOLDER = os.environ["FOLDER"]
os.environ["AZURE_CONFIG_DIR"] = os.path.join(FOLDER, "az-config")
os.environ["AZURE_CORE_COLLECT_TELEMETRY"] = "false"
os.environ["AZURE_CORE_ONLY_SHOW_ERRORS"] = "true"
os.environ["AZURE_CORE_INSTANCE_DISCOVERY"] = "false"
os.environ["AZURE_CORE_LOGIN_EXPERIENCE_V2"] = "off"

from azure.cli.core import get_default_cli  # noqa: E402

VHD = os.environ["VHD"]


def az(*args):
    out = io.StringIO()
    code = get_default_cli().invoke([*args, "-o", "json"], out_file=out)
    assert code == 0, (code, args, out.getvalue())
    return json.loads(out.getvalue() or "null")


def page_blob(what, url, file):
    command = [os.environ["STORAGE_PYTHON"], os.path.join(os.path.dirname(__file__), "page_blob.py"), what, url, file]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


az("cloud", "register", "-n", "local", "--endpoint-resource-manager", os.environ["SERVER_URL"])
az("cloud", "set", "-n", "local")
az("login", "--service-principal", "-u", os.environ["CLIENT_ID"], "-p", os.environ["CLIENT_SECRET"], "--tenant",
   os.environ["TENANT"])

GROUP = ["-g", "Rg"]
size = str(os.path.getsize(VHD))
disk = az("disk", "create", *GROUP, "-n", "azd", "--upload-type", "Upload", "--upload-size-bytes", size, "--os-type", "Linux",
          "--hyper-v-generation", "V1", "--sku", "Standard_LRS")
assert disk["diskState"] == "ReadyToUpload", disk
grant = az("disk", "grant-access", *GROUP, "-n", "azd", "--access-level", "Write", "--duration-in-seconds", "600")
url = grant.get("accessSAS") or grant["accessSas"]
assert page_blob("upload", url, VHD) == ""
az("disk", "revoke-access", *GROUP, "-n", "azd")
disk = az("disk", "show", *GROUP, "-n", "azd")
assert (disk["diskState"], disk["diskSizeBytes"]) == ("Unattached", int(size) - 512), disk

snapshot = az("snapshot", "create", *GROUP, "-n", "azs", "--source", "azd", "--incremental", "true")
assert (snapshot["provisioningState"], snapshot["incremental"]) == ("Succeeded", True), snapshot
copy = az("disk", "create", *GROUP, "-n", "azc", "--source", "azs")
assert copy["creationData"]["sourceUniqueId"] == snapshot["uniqueId"], copy
assert az("disk", "update", *GROUP, "-n", "azc", "--size-gb", "2")["diskSizeGB"] == 2
assert az("disk", "create", *GROUP, "-n", "empty", "--size-gb", "4")["diskSizeBytes"] == 4 << 30
assert sorted(one["name"] for one in az("disk", "list", *GROUP)) == ["azc", "azd", "empty"]

grant = az("snapshot", "grant-access", *GROUP, "-n", "azs", "--duration-in-seconds", "600")
url = grant.get("accessSAS") or grant["accessSas"]
page_blob("download", url, os.path.join(FOLDER, "az.vhd"))
az("snapshot", "revoke-access", *GROUP, "-n", "azs")
assert page_blob("properties", url, VHD).startswith("403")

az("sig", "create", *GROUP, "-r", "Azg")
az("sig", "image-definition", "create", *GROUP, "-r", "Azg", "-i", "d", "-p", "p", "-f", "o", "-s", "s", "--os-type", "Linux",
   "--hyper-v-generation", "V1")
version = az("sig", "image-version", "create", *GROUP, "-r", "Azg", "-i", "d", "-e", "1.0.0", "--os-snapshot", "azs")
assert version["provisioningState"] == "Succeeded", version
for name in ["azc", "azd", "empty"]:
    az("disk", "delete", *GROUP, "-n", name, "--yes")
az("snapshot", "delete", *GROUP, "-n", "azs")
assert az("disk", "list", *GROUP) == []
print("az is content")
