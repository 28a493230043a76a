#!/usr/bin/env bash
# Build the operator and runtime images by the Dockerfile and load them into every node that runs.
#
# Usage: images.sh [--system | --build]    (--system: only pause and CoreDNS, which `up` itself needs;
#                                           --build: load nothing, whatever nodes there are)
#
# Nothing is built again whose sources are unchanged. pip uses the host's configuration, the host's
# CA certificates, the directories of PIP_FIND_LINKS, and a directory with a CPU build of torch if
# there is one (GALVATRON_CLUSTER_WHEELS, default ../shared/wheels): it is much smaller. Without such
# directories the files that the locks name are installed, with them other builds of the same versions.
# What is in each image is listed in .build/sbom.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$here/settings.sh"
# shellcheck source-path=SCRIPTDIR source=report.sh
source "$here/report.sh"
# shellcheck source-path=SCRIPTDIR source=loading.sh
source "$here/loading.sh"

wheels=${GALVATRON_CLUSTER_WHEELS:-$CHECKOUT/../shared/wheels}
bills=$CHECKOUT/.build/sbom
targets=(operator runtime)
sources=(
  operator runtime pyproject.toml requirements-{build,operator,runtime}.lock README.md LICENSE Dockerfile .dockerignore
)
public_base=python:3.11-slim-bookworm
local_base=localhost/galvatron-test-python:3.11
certificates=/etc/ssl/certs/ca-certificates.crt

# No daemon and no user namespaces: a chroot is enough for builds that we trust.
buildah() {
  BUILDAH_ISOLATION=chroot STORAGE_DRIVER=overlay \
    command buildah --root "$layouts/storage" --runroot /run/galvatron-test-images "$@"
}

version() { sed -n 's/^version = "\(.*\)"/\1/p' "$CHECKOUT/pyproject.toml" | head -n 1; }

image_name() { echo "localhost/galvatron-$1:$(version)"; }

# Everything that git knows or would add; of a tree without git, everything that is not compiled.
source_files() {
  git ls-files --cached --others --exclude-standard -- "$@" 2>/dev/null ||
    find "$@" -type f -not -name '*.pyc' 2>/dev/null || true
}

# digest FILES...: of names and contents.
digest() {
  (
    cd "$CHECKOUT"
    source_files "$@" | sort -u | while IFS= read -r file; do
      # A file may be known to git and deleted.
      if [[ -f $file ]]; then sha256sum "$file"; fi
    done | sha256sum | cut -c 1-16
  )
}

# build_unless_current NAME DIGEST COMMAND...: the command makes the layout NAME.
build_unless_current() {
  local name=$1 wanted=$2
  shift 2
  [[ -f $layouts/$name/index.json && $(cat "$layouts/$name.digest" 2>/dev/null) == "$wanted" ]] && return
  rm -f "$layouts/$name.digest"
  phase "  building $name" "$@"
  echo "$wanted" >"$layouts/$name.digest"
}

# export_image IMAGE NAME
export_image() {
  local directory=$layouts/$2
  rm -rf "$directory"
  buildah push --quiet --format oci "$1" "dir:$directory"
  make_layout "$directory" "$1"
}

# image_of_one_file IMAGE NAME FILE
image_of_one_file() {
  local container
  container=$(buildah from scratch)
  buildah copy --quiet "$container" "$3" "/$2" >/dev/null
  buildah config --entrypoint "[\"/$2\"]" "$container"
  buildah commit --quiet --rm "$container" "$1" >/dev/null
  export_image "$1" "$2"
}

build_pause() {
  local program
  program=$(mktemp)
  gcc -static -Os -s -o "$program" "$CLUSTER_DIR/files/pause.c"
  chmod 755 "$program"
  image_of_one_file "$PAUSE_IMAGE" pause "$program"
  rm -f "$program"
}

build_coredns() { image_of_one_file "$COREDNS_IMAGE" coredns "$BIN/coredns"; }

build_system_images() {
  mkdir -p "$layouts"
  build_unless_current pause "$(digest tests/cluster/files/pause.c)" build_pause
  build_unless_current coredns "$(sha256sum "$BIN/coredns" | cut -c 1-16)" build_coredns
}

has_image() { buildah inspect --type image "$1" >/dev/null 2>&1; }

pull_base() { timeout 120 "$0" --pull >/dev/null 2>&1; }

# Where this machine's own packages come from.
debian_mirror() {
  # shellcheck disable=SC2016  # apt fills the field in
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sort -u | sed -n 1p
}

# A stand-in for machines without Docker Hub: the same Debian, with Debian's own Python.
make_local_base() {
  local container root log
  log=$(mktemp)
  container=$(buildah from scratch)
  root=$(buildah mount "$container")
  if ! debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" \
    "${GALVATRON_DEBIAN_MIRROR:-$(debian_mirror)}" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    fail "neither $public_base nor a Debian mirror can be reached" "set GALVATRON_DEBIAN_MIRROR (log: $log)"
  fi
  rm -rf "$log" "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
  buildah unmount "$container" >/dev/null
  buildah commit --quiet --rm "$container" "$local_base" >/dev/null
}

get_base() {
  has_image "$public_base" || has_image "$local_base" || pull_base ||
    phase "  building a Python base image" make_local_base
}

base_image() { if has_image "$public_base"; then echo "$public_base"; else echo "$local_base"; fi; }

# Directories with wheels, each followed by its place in the build. Every one once: what the build
# is told is part of what decides whether it may use its layers again.
wheel_directories() {
  local directory
  for directory in ${PIP_FIND_LINKS:-} "$wheels"; do
    if compgen -G "$directory/*.whl" >/dev/null; then realpath "$directory"; fi
  done | sort -u | awk '{ print $0, "/wheels-" NR - 1 }'
}

pip_configuration() {
  local file
  for file in "${PIP_CONFIG_FILE:-}" "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$HOME/.pip/pip.conf" /etc/pip.conf; do
    [[ -s $file && $file != /dev/null ]] && echo "$file" && return
  done
  return 0
}

# Options of `buildah build` that let pip find packages as it does on the host, one per line.
pip_options() {
  local variable file place places=()
  while read -r file place; do
    echo "--volume=$file:$place:ro"
    places+=("$place")
  done < <(wheel_directories)
  echo "--build-arg=PIP_FIND_LINKS=${places[*]:-}"
  # A build of torch for CPUs has another hash.
  echo "--build-arg=LOCK=$(if ((${#places[@]})); then echo versions; else echo hashes; fi)"
  file=$(pip_configuration)
  [[ -n $file ]] && echo "--secret=id=pip,src=$file"
  [[ -s $certificates ]] && echo "--volume=$certificates:$certificates:ro"
  for variable in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_CERT; do
    [[ -n ${!variable:-} ]] && echo "--build-arg=$variable=${!variable}"
  done
  return 0
}

write_bill_of_materials() {
  local container
  mkdir -p "$bills"
  container=$(buildah from --pull-never "$(image_name "$1")")
  cp "$(buildah mount "$container")/opt/venv/sbom.cdx.json" "$bills/galvatron-$1.cdx.json"
  buildah rm "$container" >/dev/null
}

build_target() {
  local target=$1 log=$layouts/$1.log options
  mapfile -t options < <(pip_options)
  if ! buildah build --layers --pull-never --network host --target "$target" --tag "$(image_name "$target")" \
    --build-arg "PYTHON_IMAGE=$(base_image)" --build-arg "VERSION=$(version)" "${options[@]}" \
    "$CHECKOUT" >"$log" 2>&1; then
    tail -n 25 "$log" >&2
    fail "the $target image does not build" "read $log"
  fi
  write_bill_of_materials "$target"
  export_image "$(image_name "$target")" "$target"
}

build_product_images() {
  local target sum
  sum=$(digest "${sources[@]}")
  mkdir -p "$layouts"
  get_base
  for target in "${targets[@]}"; do
    build_unless_current "$target" "$sum" build_target "$target"
    # The cache may be older than this checkout.
    [[ -f $bills/galvatron-$target.cdx.json ]] || write_bill_of_materials "$target"
  done
}

load_into_node() {
  local target
  for target in "${targets[@]}"; do load_image "$1" "$target"; done
}

load_into_nodes() {
  local index jobs=()
  for index in $(node_indices); do
    load_into_node "$index" &
    jobs+=($!)
  done
  for index in "${jobs[@]}"; do wait "$index"; done
}

build() {
  take_lock
  phase "packages" "$here/packages.sh" 9>&-
  phase "images of operator and runtime" build_product_images
}

build_and_load() {
  build
  if [[ -n $(node_indices) ]]; then
    phase "loading them into the nodes" load_into_nodes
  else
    say "no cluster is up: run this again after 'up' to load them"
  fi
}

main() {
  help_if_asked "$0" "$@"
  require_root "building images"
  case "${1:-}" in
    --system) build_system_images ;;
    --pull) buildah pull --quiet "$public_base" ;;
    --build) users_own_cluster images || build ;;
    "") users_own_cluster images || build_and_load ;;
    *) fail "unknown argument '$1'" "images.sh --help" ;;
  esac
}

main "$@"
