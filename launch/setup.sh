# Makes .venv with everything that EXTRAS names, once per pyproject.toml; sourced, not run.
# PYTHON chooses the interpreter (3.11 or 3.12).
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
EXTRAS=${EXTRAS:-}
stamp=".venv/.installed-$(sha256sum pyproject.toml | cut -c1-16)-${EXTRAS:-plain}"
if [ ! -e "$stamp" ]; then
  "${PYTHON:-python3}" -m venv .venv || exit 1
  echo "installing into .venv (a few minutes, once) ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable ".${EXTRAS:+[$EXTRAS]}" || exit 1
  touch "$stamp"
fi
