#!/usr/bin/env bash
# with_env.sh COMMAND...: run it in the workspace's environment, whatever the calling shell has sourced.
set -eo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ -f $root/env.sh ]] || { echo "no env.sh: run scripts/setup.sh first" >&2; exit 1; }
unset ROS_DISTRO PYTHONPATH PYTHONHOME LD_LIBRARY_PATH {AMENT,CMAKE,COLCON}_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
# shellcheck disable=SC1091
source "$root/env.sh"
exec "$@"
