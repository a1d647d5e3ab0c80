# What the run.sh of every example begins with: sourced in the project's folder. Sets GO and PYTHON, and checks for the tools.
GO=${GO:-go} PYTHON=${PYTHON:-python3}
fail() { echo "example: error: $*" >&2; exit 1; }
step() { echo "==> $*"; }
for tool in "$GO" "$PYTHON" c++; do
  command -v "$tool" >/dev/null || fail "$tool is not installed; install Go 1.26, Python 3.11 or newer with venv, and a C++ compiler"
done
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail "$PYTHON cannot make virtual environments; install python3-venv"
