#!/bin/sh
# The installations of the Dockerfile: from which index, with whose certificates, and what is left out of the image.
#
#     install.sh tools LOCK    uv, the build backend and the writer of the SBOM, into /opt/tools
#     install.sh cell LOCK     the lock into /opt/portproof, made small and reproducible, under /image
#     install.sh project       the project in the working directory, and the SBOM, under /image-project
set -eu

export PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export PIP_CACHE_DIR=/var/cache/portproof/pip UV_CACHE_DIR=/var/cache/portproof/uv # the cache mount of the Dockerfile
export UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1 UV_NO_INSTALLER_METADATA=1
uv=/opt/tools/bin/uv
python=/opt/portproof/bin/python
no_index=

sources() {
  # A certificate authority given as a secret, or else those of the base; uv would bring its own list.
  SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
  [ ! -s /run/secrets/ca ] || SSL_CERT_FILE=/run/secrets/ca
  if [ -s "$SSL_CERT_FILE" ]; then export SSL_CERT_FILE PIP_CERT="$SSL_CERT_FILE"; else unset SSL_CERT_FILE; fi

  # An index with a password comes as a secret: build arguments can be read from the image's history.
  [ ! -s /run/secrets/index_url ] || INDEX_URL=$(cat /run/secrets/index_url)
  [ -z "${INDEX_URL:-}" ] || export PIP_INDEX_URL="$INDEX_URL" UV_DEFAULT_INDEX="$INDEX_URL"

  export PIP_FIND_LINKS=/wheels UV_FIND_LINKS=/wheels
  if [ -n "${NO_INDEX:-}" ]; then
    export PIP_NO_INDEX=1
    no_index=--no-index # uv has no variable for it
  elif [ -n "${TORCH_INDEX:-}" ] && [ -z "${TORCH_REQUIREMENTS:-}" ] && ! torch_wheel; then
    # Best match: PyTorch's index mirrors old releases of other packages too. The hashes decide what is taken.
    export UV_INDEX="$TORCH_INDEX" UV_INDEX_STRATEGY=unsafe-best-match
  fi
}

torch_wheel() { # is there one for this Python among the wheels given?
  tag=$(python3 -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  ls /wheels/torch-*-"$tag"-*.whl >/dev/null 2>&1
}

tools() {
  python3 -m venv /opt/tools
  /opt/tools/bin/python -m pip install --quiet --require-hashes --only-binary :all: --requirement "$1"
}

cell() {
  name=$(basename "$1" .txt)
  [ -f "$1" ] || {
    others=$(cd "$(dirname "$1")" && ls "${name%-tf*}"-tf*.txt | sed 's/.*-tf//; s/\.txt$//' | tr '\n' ' ')
    echo "no cell has Python ${name%-tf*} with TensorFlow ${name#*-tf}: set TF_VERSION to one of $others"
    exit 2
  } >&2
  "$uv" venv --quiet --python /usr/local/bin/python3 /opt/portproof
  lock=$1
  if [ -n "${TORCH_REQUIREMENTS:-}" ]; then # another build of torch: the lock without its torch, and a file of /wheels
    lock=/tmp/lock.txt
    awk '/^[^ \t]/ { skip = /^torch==/ } !skip' "$1" > "$lock"
    cat "/wheels/$TORCH_REQUIREMENTS" >> "$lock"
  fi
  "$uv" pip install --quiet $no_index --python "$python" --require-hashes --only-binary :all: --requirement "$lock"
  "$uv" pip check --quiet --python "$python"
  strip_unused
  compile /opt/portproof/lib /usr/local/lib/python3.*
  # Python's own modules come uncompiled in the base, and nothing can be written beside them later.
  mkdir -p /image/opt /image/src /image/usr/local/lib
  cd /usr/local/lib
  find python3.* -name __pycache__ -exec cp -a --parents -t /image/usr/local/lib {} +
  # Copied from here with its parent: `COPY /opt/portproof /opt/portproof` would date /opt by the clock.
  mv /opt/portproof /image/opt/portproof
  date_all /image
}

strip_unused() {
  cd /opt/portproof/lib/python3.*/site-packages
  du -sm . | sed 's/\t.*/ MB installed/'
  # For compiling against the frameworks: headers, static libraries, protoc and Clang's library.
  rm -rf tensorflow/include torch/include torch/share torch/bin/protoc* clang/native/libclang.so numpy/*core/include
  find . -name '*.a' -delete
  # Tests that came with packages; torch's C++ ones are programs. `testing` packages stay, they are imported.
  rm -rf torch/test torch/bin/test_*
  find numpy sympy networkx mpmath h5py keras google -type d -name tests -prune -exec rm -rf {} +
  # TensorBoard's web page and server: nothing here starts it.
  rm -rf tensorboard_data_server/bin/server tensorboard/webfiles.zip
  "$python" /build/strip_symbols.py tensorflow torch tensorflow_io_gcs_filesystem
  du -sm . | sed 's/\t.*/ MB kept/'
  cd /
}

compile() {
  # By hash, for a file's time is not reproducible, and unchecked, for nobody edits an image's files. What is left out holds
  # syntax of other Pythons, on purpose.
  "$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/lib2to3/tests/|/test/bad|/py312_intrinsics' "$@"
}

date_all() {
  find "$@" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

project() {
  /opt/tools/bin/python -m hatchling build --target wheel --directory /tmp/dist
  "$uv" pip install --quiet --python "$python" --no-index --no-deps /tmp/dist/*.whl
  "$uv" pip check --quiet --python "$python" || {
    echo "the cell's lock is older than pyproject.toml: nox -s lock writes it anew" >&2
    exit 2
  }
  cd /opt/portproof/lib/python3.*/site-packages
  compile portproof
  site=${PWD#/}
  mkdir -p /image-project/usr/share/portproof
  cd /
  cp -a --parents -t /image-project "$site/portproof" "$site"/portproof-*.dist-info opt/portproof/bin/portproof
  /opt/tools/bin/cyclonedx-py environment --output-reproducible --pyproject /src/pyproject.toml --output-format JSON \
    --output-file /image-project/usr/share/portproof/sbom.cdx.json "$python"
  date_all /image-project
}

case $1 in
tools) sources && tools "$2" ;;
cell) sources && cell "$2" ;;
project) project ;;
esac
