"""When and where the pipeline runs."""

import os

# Prefect's server reports its use to its makers unless told not to; a user may still choose to.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# A busy machine takes longer over its temporary server than Prefect waits by default, 20 seconds.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
# Its server may be away for minutes, or say 500 while its database is: pauses double, from two seconds.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
