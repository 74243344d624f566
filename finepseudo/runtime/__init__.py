"""The edge to Ray: the cluster, the streams of clips, the training workers, the scoring pool."""

import os
import secrets

# Ray reads its authentication when it is first imported. A cluster that is started here (no RAY_ADDRESS names one to
# join) binds to all interfaces, so it answers only to a token made afresh; workers inherit theirs.
if "RAY_ADDRESS" not in os.environ:
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
