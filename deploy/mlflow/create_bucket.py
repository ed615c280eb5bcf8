"""Make a bucket where there is none: ``python create_bucket.py NAME``.

The store's address and keys come from MLFLOW_S3_ENDPOINT_URL and boto3's own variables.
"""

from __future__ import annotations

import os
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

_PATIENCE = Config(retries={"mode": "standard", "max_attempts": 8}, connect_timeout=5)


def create_bucket(name: str) -> bool:
    """Make the bucket ``name``; False where it is there already.

    Raises:
        ClientError: the store refuses.
    """
    client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"], config=_PATIENCE)
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        client.create_bucket(Bucket=name)
        return True
    return False


if __name__ == "__main__":
    sys.stdout.write("created\n" if create_bucket(sys.argv[1]) else "there already\n")
