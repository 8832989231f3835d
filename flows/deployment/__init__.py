"""The Prefect server: deployments, work pools, automations, and the processes of `make serve`."""
