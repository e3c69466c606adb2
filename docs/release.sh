#!/usr/bin/env bash
# Builds and tags the version of the package, after checking that it is one. Pushes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

fail() { echo "release: $1" >&2; exit 2; }

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1)
tag="v$version"
[ -n "$version" ] || fail "pyproject.toml has no version"
grep -q "^__version__ = \"$version\"$" src/gptoss_tune/__init__.py \
  || fail "src/gptoss_tune/__init__.py has another version than $version"
grep -q "^version: $version$" CITATION.cff || fail "CITATION.cff has another version than $version"
grep -q "gptoss-tune:$version" Dockerfile || fail "Dockerfile names another version than $version"
grep -qE "^## $version( |$)" CHANGELOG.md \
  || fail "CHANGELOG.md has no section '## $version'; rename '## Unreleased' and date it"
[ -z "$(git status --porcelain)" ] || fail "the tree is not clean; commit or remove what git status lists"
git rev-parse -q --verify "refs/tags/$tag" >/dev/null && fail "the tag $tag exists; raise the version"

rm -rf dist
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; set PYTHON"
"$python" -m pip install --quiet build
"$python" -m build --outdir dist .
for file in "dist/gptoss_tune-$version-py3-none-any.whl" "dist/gptoss_tune-$version.tar.gz"; do
  [ -s "$file" ] || fail "$file was not built"
done
git tag --annotate "$tag" --message "gptoss-tune $version"
echo "built dist/, tagged $tag; to publish: git push origin $tag, and upload dist/"
