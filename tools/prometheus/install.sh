#!/usr/bin/env bash
# Debian's Prometheus as DIR/prometheus, unpacked without root rights; one that is installed already is taken instead.
# usage: install.sh DIR
set -euo pipefail
dir=$1
mkdir -p "$dir"
cd "$dir"
[ -x prometheus ] && exit 0
if installed=$(command -v prometheus); then
  ln -sf "$installed" prometheus
  exit 0
fi
for tool in apt-get dpkg; do
  command -v "$tool" >/dev/null || { echo "There is no Prometheus, and no $tool to get Debian's: install one so that 'prometheus' is on the PATH" >&2; exit 1; }
done

# Lists and cache of our own: the machine's may be empty or old, and belong to root.
mkdir -p apt/lists/partial apt/cache/archives/partial
apt=(apt-get -qq -o "Dir::State::lists=$PWD/apt/lists" -o "Dir::Cache=$PWD/apt/cache" -o APT::Sandbox::User= -o Debug::NoLocking=1)
apt-get -qq -o APT::Sandbox::User= download prometheus 2>/dev/null || { "${apt[@]}" update && "${apt[@]}" download prometheus; } || {
  echo "Debian's package 'prometheus' can't be downloaded. Install Prometheus so that 'prometheus' is on the PATH" >&2
  exit 1
}
dpkg -x prometheus_*.deb unpacked
rm -rf apt prometheus_*.deb
ln -sf unpacked/usr/bin/prometheus prometheus
./prometheus --version 2>&1 | head -1
