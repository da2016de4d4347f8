"""What the service tells about itself: log lines and metrics.

Any layer except `tokens` and `signing` may log (`structlog.get_logger(__name__)`) and count. Neither a
log line nor a metric ever holds a token, a key, a secret or a user id; `redaction.py` is the net below
that rule, not a reason to lean on it.
"""
