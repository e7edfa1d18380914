#!/usr/bin/env bash
# Dumps the metadata of all projects into /backups, whole or not at all, and keeps the newest $KEEP.
set -euo pipefail
cd "${BACKUPS:-/backups}"
rm -f ./*.partial
name=metadata-$(date -u +%Y%m%dT%H%M%SZ).sql.gz
mapfile -t databases < <(mariadb --host="$METADATA_HOST" --user="$METADATA_USER" \
  --batch --skip-column-names --execute="SHOW DATABASES LIKE 'graftline%'")
[[ ${#databases[@]} -gt 0 ]] || {
  echo "There is no database whose name begins with graftline yet, or it cannot be asked."
  exit 1
}
mariadb-dump --host="$METADATA_HOST" --user="$METADATA_USER" --single-transaction --routines \
  --databases "${databases[@]}" | gzip >"$name.partial"
sync "$name.partial"
mv "$name.partial" "$name"
echo "Wrote $name: ${databases[*]}."
# Older ones go only once a newer one is there.
find . -maxdepth 1 -name 'metadata-*.sql.gz' | sort -r | tail -n +"$((KEEP + 1))" | xargs -r rm --
