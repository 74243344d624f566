#!/usr/bin/env bash
# Start a Ray head on this machine to submit jobs to. Ray binds to all interfaces, so the cluster answers only to holders
# of a token, made afresh and kept in a file that only this user can read.
#
#   cluster/head.sh TOKEN_FILE [more options of `ray start`]
#
# Then submit to it:
#   python cluster/submit.py --token-file TOKEN_FILE -- python jobs/run.py rehearsal --run /path/of/run
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
token_file=$(realpath -m "$1")
shift
umask 077
mkdir -p "$(dirname "$token_file")"
python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token_file"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token_file" RAY_USAGE_STATS_ENABLED=0
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-30}"  # trainings commit their step within 25 s
ray start --head --dashboard-host=127.0.0.1 --disable-usage-stats "$@"
