"""A prepared experiment: placed, run, resumed, compared, and watched for alerts."""
