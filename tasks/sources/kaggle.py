"""The zip archive of a Kaggle dataset, located with kagglehub's client.

Credentials are those of kagglehub: KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, or a file in ~/.kaggle.
Without credentials, requests are anonymous.
"""

import re
from typing import Any

import requests

from tasks.sources.transfer import UnavailableError
from tasks.sources.web import WebFile, reason, status_of
from tasks.support.cli import InputError

FORM = "kaggle://OWNER/NAME or kaggle://OWNER/NAME/versions/7"
HANDLE = re.compile(r"kaggle://(?P<owner>[\w-]+)/(?P<name>[\w-]+)(?:/versions/(?P<version>[1-9]\d{0,8}))?/?")

WHAT_TO_DO = (
    "create a token at kaggle.com/settings and put it into ~/.kaggle/kaggle.json or KAGGLE_API_TOKEN, or "
    "download the zip in a browser and set data.source to its path"
)


def open_kaggle(source: str) -> WebFile:
    """The zip of a Kaggle dataset, in the given version or the newest one.

    Raises:
        InputError: the URL is not of this form, or Kaggle refuses access.
        UnavailableError: Kaggle cannot be reached or is too busy.
    """
    match = HANDLE.fullmatch(source)
    if not match:
        raise InputError(f"data.source: {source}: expected {FORM}")
    owner, name, version = match["owner"], match["name"], match["version"]
    return WebFile(lambda: _locate(source, owner, name, int(version or 0)), source)


def _locate(where: str, owner: str, name: str, version: int) -> str:
    """The URL to which Kaggle redirects a download. It is signed and expires."""
    # These take a second to import, and most runs do not need them.
    from kagglehub.clients import build_kaggle_client
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest

    request = ApiDownloadDatasetRequest()
    request.owner_slug, request.dataset_slug = owner, name
    if version:
        request.dataset_version_number = version
    try:
        with build_kaggle_client() as client:
            response: Any = client.datasets.dataset_api_client.download_dataset(request)
            with response:
                if not response.history:
                    raise InputError(f"{where}: Kaggle did not return the URL of its zip; {WHAT_TO_DO}")
                return str(response.url)
    except requests.HTTPError as error:
        if error.response is None:
            raise UnavailableError(f"{where}: Kaggle: {reason(error)}") from None
        raise _refusal(where, error.response) from None
    except requests.RequestException as error:
        raise UnavailableError(f"{where}: Kaggle cannot be reached: {reason(error)}") from None
    except ValueError as error:  # kaggle.json is invalid
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {error}") from None


def _refusal(where: str, response: requests.Response) -> Exception:
    # An error may be JSON in a response with status 200.
    status = response.status_code if response.status_code >= 400 else _code(response)
    if status == 429 or status >= 500:
        return UnavailableError(
            f"{where}: Kaggle is too busy ({status_of(response)}); "
            f"try later, or with an account: {WHAT_TO_DO}"
        )
    if status == 404:
        return InputError(f"{where}: Kaggle has no such dataset or version, or it is private; {WHAT_TO_DO}")
    return InputError(f"{where}: Kaggle refused access ({status_of(response)}); {WHAT_TO_DO}")


def _code(response: requests.Response) -> int:
    try:
        return int(response.json().get("code", 0))
    except (ValueError, AttributeError, TypeError):
        return 0
