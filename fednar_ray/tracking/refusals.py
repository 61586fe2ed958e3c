"""Tells errors that MLflow means from those of an outage: a refusal stays one, however often a call is repeated."""

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import IntegrityError

REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
FIXED_BY_CREDENTIALS = (401, 403, 407)  # HTTP statuses
FIXED_BY_WAITING = (408, 425, 429)
NOT_MLFLOW = (404, 405, 410)  # sent by a proxy or by another program


def is_refusal(error: Exception) -> bool:
    """Returns whether neither another attempt nor other credentials can help against an error.

    Over HTTP only an error in MLflow's own form is a refusal; that of a proxy is not. A database refuses what
    contradicts its constraints, such as a second value for the same metric, step and time.
    """
    if isinstance(error.__cause__, IntegrityError):
        return True
    status = getattr(getattr(error, "response", None), "status_code", 0)  # of an upload over HTTP
    if 400 <= status < 500:
        return status not in (*FIXED_BY_CREDENTIALS, *FIXED_BY_WAITING, *NOT_MLFLOW)
    if isinstance(error, MlflowException) and "API request to endpoint" in str(error):
        return False
    return isinstance(error, FileNotFoundError) or (isinstance(error, MlflowException) and error.error_code in REFUSALS)
