"""The unmodified azure-cli against the server: `az image`, and an image version of an image."""

import io
import json
import os

FOLDER = os.environ["FOLDER"]
os.environ["AZURE_CONFIG_DIR"] = os.path.join(FOLDER, "az-config")
os.environ["AZURE_CORE_COLLECT_TELEMETRY"] = "false"
os.environ["AZURE_CORE_ONLY_SHOW_ERRORS"] = "true"
os.environ["AZURE_CORE_INSTANCE_DISCOVERY"] = "false"
os.environ["AZURE_CORE_LOGIN_EXPERIENCE_V2"] = "off"

from azure.cli.core import get_default_cli  # noqa: E402


def az(*args):
    out = io.StringIO()
    code = get_default_cli().invoke([*args, "-o", "json"], out_file=out)
    assert code == 0, (code, args, out.getvalue())
    return json.loads(out.getvalue() or "null")


az("cloud", "register", "-n", "local", "--endpoint-resource-manager", os.environ["SERVER_URL"])
az("cloud", "set", "-n", "local")
az("login", "--service-principal", "-u", os.environ["CLIENT_ID"], "-p", os.environ["CLIENT_SECRET"], "--tenant",
   os.environ["TENANT"])

GROUP = ["-g", "Rg"]
vhd = az("image", "create", *GROUP, "-n", "img1", "--os-type", "Linux", "--source", os.environ["VHD_URI"])
assert vhd["provisioningState"] == "Succeeded", vhd
assert vhd["storageProfile"]["osDisk"]["blobUri"] == os.environ["VHD_URI"], vhd
disk = az("image", "create", *GROUP, "-n", "img2", "--source", "disk1", "--os-type", "linux", "--data-disk-sources",
          os.environ["SNAPSHOT"])
assert disk["storageProfile"]["osDisk"]["managedDisk"]["id"].endswith("/disks/disk1"), disk
assert [one["lun"] for one in disk["storageProfile"]["dataDisks"]] == [0], disk
az("image", "create", *GROUP, "-n", "img3", "--source", os.environ["SNAPSHOT"], "--os-type", "linux")
shown = az("image", "show", *GROUP, "-n", "img3")
assert (shown["hyperVGeneration"], shown["storageProfile"]["osDisk"]["diskSizeGB"]) == ("V1", 1), shown
assert az("image", "update", *GROUP, "-n", "img3", "--tags", "a=b")["tags"] == {"a": "b"}
assert sorted(one["name"] for one in az("image", "list")) == ["img1", "img2", "img3"]

az("sig", "create", *GROUP, "-r", "Azg")
az("sig", "image-definition", "create", *GROUP, "-r", "Azg", "-i", "d", "-p", "p", "-f", "o", "-s", "s", "--os-type", "Linux",
   "--hyper-v-generation", "V1")
version = az("sig", "image-version", "create", *GROUP, "-r", "Azg", "-i", "d", "-e", "1.0.0", "--managed-image", "img1")
assert version["provisioningState"] == "Succeeded", version
for name in ["img1", "img2", "img3"]:
    az("image", "delete", *GROUP, "-n", name)
assert az("image", "list", *GROUP) == []
print("az is content")
