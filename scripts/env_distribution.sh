if [ -n "${ROS_DISTRO:-}" ] && [ "$ROS_DISTRO" != jazzy ]; then
    echo "env.sh: expected ROS 2 jazzy, got $ROS_DISTRO, start from a new shell" >&2
    return 1
fi
. "$_nora_root/install/setup.${ZSH_VERSION:+z}${BASH_VERSION:+ba}sh"
case ":$PATH:" in
    *":$_nora_root/.venv/bin:"*) ;;
    *) export PATH="$_nora_root/install/bin:$_nora_root/.venv/bin:$PATH" ;;
esac
export VIRTUAL_ENV="$_nora_root/.venv"
export FASTRTPS_DEFAULT_PROFILES_FILE="$_nora_root/src/nora_bringup/config/fastdds.xml" # the name Jazzy reads
export FASTDDS_DEFAULT_PROFILES_FILE="$FASTRTPS_DEFAULT_PROFILES_FILE"
[ -n "${HOME:-}${ROS_HOME:-}${ROS_LOG_DIR:-}" ] || export ROS_LOG_DIR="$_nora_root/log/ros"
unset _nora_root
