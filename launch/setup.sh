# Makes .venv with everything that EXTRAS names, once per pyproject.toml and Python; sourced, not run.
# PYTHON chooses the interpreter; else the newest of 3.13, 3.12 and 3.11 that runs here.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
EXTRAS=${EXTRAS:-}
names=(python3.13 python3.12 python3.11)
if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
for python in "${names[@]}"; do
  # A name that is found may still not run, where a version manager has another one switched on.
  version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) && break
done
if [ -z "$version" ]; then
  echo "error: none of these runs here: ${names[*]}; PYTHON=PATH chooses another" >&2
  exit 1
fi
stamp=".venv/.installed-$(sha256sum pyproject.toml | cut -c1-16)-$version-${EXTRAS:-plain}"
if [ ! -e "$stamp" ]; then
  # What another Python installed is of no use to this one.
  "$python" -m venv $(compgen -G ".venv/.installed-*-$version-*" >/dev/null || echo --clear) .venv || exit 1
  echo "installing into .venv for Python $version (a few minutes, once) ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable ".${EXTRAS:+[$EXTRAS]}" || exit 1
  touch "$stamp"
fi
