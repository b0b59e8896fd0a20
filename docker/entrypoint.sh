#!/bin/bash
# ROS 2, the workspace and our Fast DDS profile, then the command.
set -e
source /opt/nora/install/setup.bash
export PATH="/opt/nora/install/bin:/opt/nora/.venv/bin:$PATH"
export FASTRTPS_DEFAULT_PROFILES_FILE=/opt/nora/install/share/nora_bringup/config/fastdds.xml
export FASTDDS_DEFAULT_PROFILES_FILE="$FASTRTPS_DEFAULT_PROFILES_FILE"
exec "$@"
