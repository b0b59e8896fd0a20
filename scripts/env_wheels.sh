case ":${AMENT_PREFIX_PATH:-}:" in
    :: | *":$_nora_root/.venv:"*) ;;
    *)
        echo "env.sh: another ROS 2 is sourced here ($AMENT_PREFIX_PATH), start from a new shell" >&2
        return 1
        ;;
esac

_nora_first() { # VARIABLE PATHS: put them first, once
    eval "_nora_old=\${$1:-}"
    case ":$_nora_old:" in
        *":$2:"*) ;;
        *) export "$1=$2${_nora_old:+:$_nora_old}" ;;
    esac
}
_nora_first PATH "$_nora_root/install/bin:$_nora_root/.venv/bin"
_nora_first AMENT_PREFIX_PATH "$_nora_root/install:$_nora_root/.venv"
_nora_first CMAKE_PREFIX_PATH "$_nora_root/install:$_nora_root/.venv"
_nora_first PYTHONPATH "$_nora_python_path"
_nora_first LD_LIBRARY_PATH "$_nora_root/install/lib:$_nora_libraries"
export VIRTUAL_ENV="$_nora_root/.venv"
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 # the wheels would set LD_LIBRARY_PATH in random order and start Python twice
export FASTRTPS_DEFAULT_PROFILES_FILE="$_nora_root/src/nora_bringup/config/fastdds.xml" # the name Jazzy reads
export FASTDDS_DEFAULT_PROFILES_FILE="$FASTRTPS_DEFAULT_PROFILES_FILE"
# The wheels are for simulation on one machine: keep away from the robots of the network unless told otherwise.
export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
[ -n "${HOME:-}${ROS_HOME:-}${ROS_LOG_DIR:-}" ] || export ROS_LOG_DIR="$_nora_root/log/ros"
unset -f _nora_first
unset _nora_root _nora_libraries _nora_python_path _nora_old
