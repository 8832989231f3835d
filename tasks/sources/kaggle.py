"""A dataset's zip at Kaggle, found by the client of kagglehub.

Credentials are kagglehub's: KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, or a file in ~/.kaggle; without
any, Kaggle gives what it gives to everybody.
"""

import re
from typing import Any

import requests

from tasks.sources.transfer import UnavailableError
from tasks.sources.web import WebFile, reason, said
from tasks.support.cli import InputError

FORM = "kaggle://OWNER/NAME or kaggle://OWNER/NAME/versions/7"
HANDLE = re.compile(r"kaggle://(?P<owner>[\w-]+)/(?P<name>[\w-]+)(?:/versions/(?P<version>[1-9]\d{0,8}))?/?")

WHAT_TO_DO = (
    "make a token at kaggle.com/settings and put it into ~/.kaggle/kaggle.json or KAGGLE_API_TOKEN, or "
    "download the zip in a browser and set data.source to its path"
)


def open_kaggle(source: str) -> WebFile:
    """The zip of a Kaggle dataset, the newest version or that which is named.

    Raises:
        InputError: the URL is not of that form, or Kaggle refuses.
        UnavailableError: Kaggle can't be reached or is too busy.
    """
    match = HANDLE.fullmatch(source)
    if not match:
        raise InputError(f"data.source: {source}: right would be {FORM}")
    owner, name, version = match["owner"], match["name"], match["version"]
    return WebFile(lambda: _locate(source, owner, name, int(version or 0)), source)


def _locate(where: str, owner: str, name: str, version: int) -> str:
    """The URL that Kaggle redirects a download to; it is signed, and runs out."""
    # They take a second to import, and few need them.
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
                    raise InputError(f"{where}: Kaggle does not say where its zip is; {WHAT_TO_DO}")
                return str(response.url)
    except requests.HTTPError as error:
        if error.response is None:
            raise UnavailableError(f"{where}: Kaggle: {reason(error)}") from None
        raise _refusal(where, error.response) from None
    except requests.RequestException as error:
        raise UnavailableError(f"{where}: Kaggle can't be reached: {reason(error)}") from None
    except ValueError as error:  # a kaggle.json that is none
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {error}") from None


def _refusal(where: str, response: requests.Response) -> Exception:
    # An error may come as JSON in an answer of status 200.
    status = response.status_code if response.status_code >= 400 else _code(response)
    if status == 429 or status >= 500:
        return UnavailableError(
            f"{where}: Kaggle is too busy ({said(response)}); try later, or with an account: {WHAT_TO_DO}"
        )
    if status == 404:
        return InputError(f"{where}: Kaggle has no such dataset or version, or hides it; {WHAT_TO_DO}")
    return InputError(f"{where}: Kaggle refuses ({said(response)}); {WHAT_TO_DO}")


def _code(response: requests.Response) -> int:
    try:
        return int(response.json().get("code", 0))
    except (ValueError, AttributeError, TypeError):
        return 0
