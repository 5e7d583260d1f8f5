# Sourced by the scripts here that take something from Debian's archive: fetched with a state of its own, signatures
# checked, unpacked; nothing is installed, no root is needed. A script sets $name, by which it speaks, $what it is after,
# and what would do as well ($otherwise). No function here is called where `set -e` does not hold.
export LC_ALL=C # apt's messages are read below
umask 022

say() { printf '%s: %s\n' "$name" "$*" >&2; }

# stop CODE SENTENCE
stop() {
    code=$1
    shift
    say "$*"
    exit "$code"
}

# The archive's address is the machine's own affair (mirror, proxy, cache), so apt is asked: it reads .list and .sources
# alike, and answers even before the first `apt-get update`. Other vendors' archives may use the same suite names; the
# signature tells them apart later.
archives() {
    apt-get update --print-uris -o Dir::State::lists="$work/none/" 2>>"$log" |
        sed -nE "s,^'(.*)/dists/(bullseye|bookworm|trixie|forky|sid|(old)*stable|testing|unstable)/InRelease' .*,\1,p" |
        awk '!seen[$0]++'
}

keyring() {
    for suffix in gpg pgp; do
        ring=/usr/share/keyrings/debian-archive-keyring.$suffix
        if [ -r "$ring" ]; then
            echo "$ring"
            return
        fi
    done
    stop 3 "Debian's signatures cannot be checked here: install debian-archive-keyring"
}

# apt with nothing of the machine's but the way to the archive (Acquire: proxy, certificates, time-outs). Its hooks
# would act on the system, its pins choose other versions.
configure() {
    mkdir -p "$work/lists/partial" "$work/none/partial" "$work/cache/archives/partial"
    : >"$work/status"
    apt-config dump | grep '^Acquire::' | grep -Ev '^Acquire::(IndexTargets|Languages|Allow)' >"$work/apt.conf"
    cat >>"$work/apt.conf" <<END
Acquire::Languages "none";
Acquire::Retries "2";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Dir::State "$work";
Dir::State::lists "lists/";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
END
    # As root, apt would fetch as a user who may not enter this directory.
    if [ "$(id -u)" = 0 ]; then
        echo 'APT::Sandbox::User "root";' >>"$work/apt.conf"
    fi
}

# index ARCHIVE SUITE PACKAGE PATTERN: reads the suite's package list, and leaves in $has which version of the package
# it holds. Leaves in $gone why it can never work, in $failed why it did not now.
index() {
    rm -f "$work/lists/"*_*
    for suite in "${2%-backports}" "$2"; do
        echo "deb [arch=amd64 signed-by=$ring] $1 $suite main"
    done | uniq >"$work/sources.list"
    if apt-get update -q >"$log" 2>&1; then
        has=$(apt-cache policy -t "$2" "$3" | sed -nE 's/^ *Candidate: ([0-9]+:)?//p')
        # shellcheck disable=SC2254 # it is a pattern
        case $has in
            $4) return 0 ;;
            *) gone="$gone; $2 has ${has:-none}" ;;
        esac
    elif grep -Eq '404|File not found' "$log"; then
        gone="$gone; the archive has no $2"
    elif grep -Eqi 'BADSIG|invalid|manipulated' "$log"; then # somebody's changes, or a list long out of date: no skip
        failed=$(grep -E '^[EW]:' "$log" | head -n 1)
    elif grep -Eq 'NO_PUBKEY|Missing key|is not signed' "$log"; then
        gone="$gone; an archive with a suite $2 is not signed by Debian"
    else
        failed=$(grep -E '^[EW]:' "$log" | head -n 1)
    fi
    return 1
}

# choose PACKAGE PATTERN SUITE...: leaves in $chosen the first suite whose version of the package matches the pattern,
# its package list read.
choose() {
    package=$1 pattern=$2
    shift 2
    gone='' failed=''
    for chosen; do
        for archive in $found; do
            if index "$archive" "$chosen" "$package" "$pattern"; then
                return
            fi
        done
    done
    if [ -n "$failed" ]; then
        stop 1 "Debian's archive gives no package list: ${failed#?: }"
    fi
    stop 3 "no $what to be had: ${gone#; }"
}

# unpack PACKAGE.deb...: into $work/tree.
unpack() {
    mkdir "$work/tree"
    for package; do
        dpkg -x "$package" "$work/tree" 2>"$log" || stop 1 "unpacking failed: $(head -n 1 "$log")"
    done
}

# able: whether this machine can take and run Debian's packages; leaves in $ring who signs them.
able() {
    if ! { command -v apt-get && command -v apt-config && command -v dpkg; } >/dev/null; then
        stop 3 "no apt here: this needs Debian$otherwise"
    fi
    [ "$(uname -m)" = x86_64 ] || stop 3 "Debian's x86_64 binaries do not run on $(uname -m)"
    ring=$(keyring) || exit
}

# place DIRECTORY VARIABLE: leaves in $root the real path of the directory for what is made; the variable may name
# another one.
place() {
    mkdir -p -- "$1" 2>/dev/null || :
    [ -w "$1" ] || stop 1 "cannot write to $1: set $2 to a directory of yours"
    root=$(cd -- "$1" && pwd -P) || exit
}

# alone THING: one run at a time for each thing. The kernel gives the lock back however a run ends, and what a killed
# run left in $work is removed by the next.
alone() {
    exec 9>"$root/.lock-$1" || exit 1
    flock -n 9 || { say "waiting for another run ($what)" && flock 9; }
    work=$root/.new-$1
    log=$work/log
}

# begin: makes $work, which goes with this run.
begin() {
    rm -rf -- "$work"
    trap 'rm -rf -- "$work"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkdir -m 700 "$work" # the proxy's password may be in apt.conf
}

# ask_archive: from here on apt is ours, not the machine's: it reads APT_CONFIG before all else.
ask_archive() {
    configure
    found=$(archives) || exit
    [ -n "$found" ] || stop 3 "apt's sources name no Debian archive: this needs Debian$otherwise"
    export APT_CONFIG="$work/apt.conf"
}
