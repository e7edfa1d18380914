# shellcheck shell=bash
# Makes the user of the steps; the database's image sources it when it makes its data folder. MLMD
# speaks mysql_native_password only, so that is said rather than left to the server's default. The
# user may make and use databases whose names begin with `graftline`: each project has its own.
graftline_quoted() {
  local value=${1//\\/\\\\}
  printf "'%s'" "${value//\'/\'\'}"
}

docker_process_sql --database=mysql <<SQL
CREATE USER $(graftline_quoted "$GRAFTLINE_METADATA_USER")@'%'
  IDENTIFIED VIA mysql_native_password
  USING PASSWORD($(graftline_quoted "$GRAFTLINE_METADATA_PASSWORD"));
GRANT ALL PRIVILEGES ON \`graftline%\`.* TO $(graftline_quoted "$GRAFTLINE_METADATA_USER")@'%';
SQL
