# Built images on disk, and from there into the nodes; sourced by the scripts that build images or
# start nodes, runs nothing.
#
# An image is kept as an uncompressed OCI layout: packing it costs more than the disk does, and a
# node that has most of the layers already is sent only the others.
# shellcheck shell=bash

layouts=$CACHE/images

# make_layout DIRECTORY IMAGE: turn what `buildah push dir:` has written into an OCI layout.
make_layout() {
  local directory=$1 image=$2 digest size
  digest=$(sha256sum "$directory/manifest.json" | cut -d ' ' -f 1)
  size=$(stat --format %s "$directory/manifest.json")
  mkdir -p "$directory/blobs/sha256"
  find "$directory" -maxdepth 1 -type f -regextype posix-extended -regex '.*/[0-9a-f]{64}' \
    -exec mv --target-directory "$directory/blobs/sha256" {} +
  mv "$directory/manifest.json" "$directory/blobs/sha256/$digest"
  rm -f "$directory/version"
  echo '{"imageLayoutVersion": "1.0.0"}' >"$directory/oci-layout"
  cat >"$directory/index.json" <<JSON
{
  "schemaVersion": 2,
  "manifests": [
    {
      "mediaType": "application/vnd.oci.image.manifest.v1+json",
      "digest": "sha256:$digest", "size": $size,
      "annotations": {"io.containerd.image.name": "$image"}
    }
  ]
}
JSON
}

# missing_blobs INDEX NAME: the image's blobs that the node has not.
missing_blobs() {
  local store blob
  store=$(node_dir "$1")/containerd/root/io.containerd.content.v1.content/blobs/sha256
  for blob in "$layouts/$2"/blobs/sha256/*; do
    [[ -f $store/${blob##*/} ]] || echo "blobs/sha256/${blob##*/}"
  done
}

# send_image INDEX NAME FILES...
send_image() {
  local index=$1 name=$2
  shift 2
  tar --directory "$layouts/$name" --create oci-layout index.json "$@" | ctr_on_node "$index" images import - >/dev/null
}

# load_image INDEX NAME: nothing is sent when the node has this very image.
load_image() {
  local index=$1 name=$2 mark blobs
  mark=$(node_dir "$index")/loaded-$name
  cmp --silent "$layouts/$name/index.json" "$mark" && return
  mapfile -t blobs < <(missing_blobs "$index" "$name")
  # containerd may drop a layer, that nothing uses any more, between the look and the sending.
  send_image "$index" "$name" "${blobs[@]}" 2>/dev/null || send_image "$index" "$name" blobs
  cp "$layouts/$name/index.json" "$mark"
}
