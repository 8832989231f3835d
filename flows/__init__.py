"""When and where the pipeline runs."""

import os

# A proxy reaches other machines, not the servers on this one. Of the two spellings programs prefer the first.
LOCAL = "127.0.0.1,localhost,::1,0.0.0.0"
_direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
if _direct != "*" and not _direct.endswith(LOCAL):
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{_direct},{LOCAL}".lstrip(",")

# What follows holds unless the user's environment says otherwise.
# Prefect's server reports its use to its makers unless told not to.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# A busy machine takes longer over its temporary server than Prefect waits by default, 20 seconds.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
# Its server may be away for minutes, or say 500 while its database is: pauses double, from two seconds.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
