#!/usr/bin/env bash
# Debian's Redis as DIR/redis-server, unpacked without root rights; one that is installed already is taken instead.
# usage: install.sh DIR
set -euo pipefail
dir=$1
mkdir -p "$dir"
cd "$dir"
[ -x redis-server ] && exit 0
if installed=$(command -v redis-server); then
  ln -sf "$installed" redis-server
  exit 0
fi
for tool in apt-get dpkg; do
  command -v "$tool" >/dev/null || { echo "There is no Redis, and no $tool to get Debian's: install one so that 'redis-server' is on the PATH" >&2; exit 1; }
done

# Lists and cache of our own: the machine's may be empty or old, and belong to root. Downloaded is what the machine lacks.
mkdir -p apt/lists/partial apt/cache/archives/partial unpacked
apt=(apt-get -qq -o "Dir::State::lists=$PWD/apt/lists" -o "Dir::Cache=$PWD/apt/cache" -o APT::Sandbox::User= -o Debug::NoLocking=1)
{ "${apt[@]}" update && "${apt[@]}" install --download-only --yes --no-install-recommends redis-server; } >apt.log 2>&1 || {
  cat apt.log >&2
  echo "Debian's package 'redis-server' can't be downloaded. Install Redis so that 'redis-server' is on the PATH" >&2
  exit 1
}
for package in apt/cache/archives/*.deb; do
  dpkg -x "$package" unpacked
done
rm -rf apt apt.log
libraries=$(find "$PWD/unpacked" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
cat >redis-server <<END
#!/bin/sh
LD_LIBRARY_PATH="$libraries" exec "$PWD/unpacked/usr/bin/redis-server" "\$@"
END
chmod +x redis-server
./redis-server --version
