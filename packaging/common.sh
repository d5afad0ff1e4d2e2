# What deb, tarball and image share. Sourced, with `set -euo pipefail` on.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=(ah spire-server spire-agent oidc-discovery-provider)

usage() {
  sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 1
}

# Reads `--NAME VALUE` into the variable NAME, for the names that the caller has set before.
options() {
  while (($#)); do
    local name=${1#--}
    [[ $1 == --?* && $# -ge 2 && -n ${!name+known} ]] || usage
    printf -v "$name" %s "$2"
    shift 2
  done
}

# The version of Cargo.toml.
version() {
  sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml"
}

# Every time in what is built: of the commit, so that who builds it again gets the same bytes.
set_epoch() {
  if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
    SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null) ||
      fail "this is no git checkout: set SOURCE_DATE_EPOCH to the time of the source, in seconds"
  fi
  export SOURCE_DATE_EPOCH
}

# A directory that ends with the script.
scratch() {
  local made
  made=$(mktemp -d)
  # shellcheck disable=SC2064 # known now
  trap "rm -rf '$made'" EXIT
  scratch=$made
}

need_programs() {
  local name
  for name in "${programs[@]}"; do
    [[ -x $1/$name ]] || fail "$1/$name is missing: make build"
  done
}

# Man pages of the program $2 in $1, below $3, and completions where it has some.
write_manual() {
  local pages=$3/share/man/man1
  if [[ $2 != ah ]]; then
    "$1/$2" man -dir "$pages" 2>/dev/null
    gzip -9n "$pages/$2"*.1
    return
  fi
  "$1/ah" agent man "$pages" 2>/dev/null
  gzip -9n "$pages"/ah*.1
  set -- "$1" "$3"
  install -d "$2/share/bash-completion/completions" "$2/share/zsh/vendor-completions" "$2/share/fish/vendor_completions.d"
  "$1/ah" agent completions bash >"$2/share/bash-completion/completions/ah"
  "$1/ah" agent completions zsh >"$2/share/zsh/vendor-completions/_ah"
  "$1/ah" agent completions fish >"$2/share/fish/vendor_completions.d/ah.fish"
}

# The settings files that `ah` in $1 knows, whatever this machine has in /etc/ah, with what is so where its services run, in
# the directory $2.
write_settings() {
  install -d "$2"
  {
    cat <<'END'
# ah-access-point.service reads this file, and `systemctl reload ah-access-point` has it read again. Where it listens is
# said in ah-access-point.socket: port 4433 of every IPv4 address. An address below that the socket unit does not have is
# listened on besides. Everybody may read this file: secrets have their place in /etc/default/ah-access-point.

END
    "$1/ah" agent access-point --print-config --config /dev/null
  } >"$2/access-point.toml"
  {
    cat <<'END'
# ah-executor.service reads this file, and `ah agent doctor --config /etc/ah/executor.toml` finds out what is amiss.
# Everybody may read it: secrets have their place in /etc/default/ah-executor.

END
    "$1/ah" agent enroll --print-config --config /dev/null
  } >"$2/executor.toml"
}

# Licence notices of what the program $1 is linked with, below $2.
write_notices() {
  local package=$1
  [[ $1 != ah ]] || package=ah-cli
  install -d "$2/share/doc/$1"
  "$root/packaging/notices" --package "$package" >"$2/share/doc/$1/NOTICES"
}

# tar of the directory $1 in an order and with owners that are the same everywhere, on stdout.
tar_of() {
  tar --create --directory "$1" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner \
    --mtime="@$SOURCE_DATE_EPOCH" "${@:2}"
}

# The libraries that program $1 is loaded with, its loader among them; nothing for a static one.
libraries() {
  { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' || true
}
