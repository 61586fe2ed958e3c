# The other scripts source this file. --help prints the comment at the top of the script and installs nothing; otherwise
# the environment is set up, and the script continues at the top of the repository.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
for argument in "$@"; do
    case $argument in -h | --help) usage; exit ;; esac
done
cd "$(dirname "$0")/.."
scripts/setup
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true PYTHONPATH="$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}"
