"""When and where the pipeline runs: Prefect flows, the command `cxr`, and everything they need."""

import os

# Servers on this machine must not be reached through a proxy. Programs read no_proxy before NO_PROXY.
LOCAL = "127.0.0.1,localhost,::1,0.0.0.0"
_direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
if _direct != "*" and not _direct.endswith(LOCAL):
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{_direct},{LOCAL}".lstrip(",")

# Defaults, which the user's environment overrides. They override the user's Prefect profile. They are not in
# prefect.toml, because Prefect reads it from the current folder only, and runs and workers have others.
# Prefect's server sends usage statistics unless this is off.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# A busy machine needs longer to start a temporary server than the 20 seconds that Prefect waits by default.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
# The server may be away for minutes, or return 500 while its database is. Delays double, from two seconds.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
