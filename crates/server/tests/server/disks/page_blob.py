"""Uses the unmodified azure-storage-blob client on a disk's access URL: upload FILE, download FILE, properties, or write."""

import os
import sys

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient

PIECE = 4 << 20


def upload(blob, path):
    """As azcopy does for a disk: only pages that hold something, then a stretch cleared again."""
    with open(path, "rb") as file:
        size = os.path.getsize(path)
        for at in range(0, size, PIECE):
            data = file.read(PIECE)
            if data.count(0) != len(data):
                blob.upload_page(data, offset=at, length=len(data), validate_content=True)
    blob.upload_page(b"\1" * 512, offset=1 << 20, length=512)
    blob.clear_page(offset=1 << 20, length=512)


def download(blob, path):
    with open(path, "wb") as file:
        blob.download_blob(max_concurrency=2).readinto(file)
    ranges, _ = blob.get_page_ranges()
    print(";".join(f"{one['start']}-{one['end']}" for one in ranges))


def main():
    what, url = sys.argv[1:3]
    blob = BlobClient.from_blob_url(url, connection_verify=os.environ["REQUESTS_CA_BUNDLE"], retry_total=0)
    try:
        if what == "upload":
            upload(blob, sys.argv[3])
        elif what == "download":
            download(blob, sys.argv[3])
        elif what == "write":
            blob.upload_page(b"\0" * 512, offset=0, length=512)
        elif what == "delete":
            blob.delete_blob()
        else:
            properties = blob.get_blob_properties()
            print(properties.size, properties.blob_type.value)
    except HttpResponseError as error:
        code = getattr(error.error_code, "value", error.error_code)
        print(error.status_code, code, error.message.splitlines()[0])


main()
