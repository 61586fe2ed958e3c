"""The address of a run in MLflow's UI."""

TRAINING_PAGES = "workflowType=machine_learning"
"""What an address within MLflow's UI must ask for. Without it, MLflow opens its pages for generative AI."""


def build_run_url(tracking_uri: str, run_id: str) -> str | None:
    """Returns the address of a run's page; None if the store is a file, which only ``fednar ui`` shows."""
    if not tracking_uri.startswith(("http://", "https://")):
        return None
    return f"{tracking_uri.rstrip('/')}/#/runs/{run_id}"
